//! Ctrl-C: the first finishes the current unit and keeps the run's state, the second ends the process at once.

use std::process;

use crate::Error;
use crate::Result;
use crate::pipeline::Stop;

/// Exit code of an interrupted run.
const INTERRUPTED: i32 = 130;

/// A [`Stop`] that Ctrl-C requests.
///
/// # Errors
/// When the system refuses a handler.
pub fn stop_on_ctrl_c() -> Result<Stop> {
    let stop = Stop::default();
    let asked = stop.clone();
    let handler = move || {
        if asked.requested() {
            process::exit(INTERRUPTED);
        }
        asked.request();
        super::render::say_stopping();
    };
    ctrlc::set_handler(handler).map_err(|error| Error::input("ctrl-c", error.to_string()))?;
    Ok(stop)
}
