//! The only code that writes to the terminal: results to stdout, progress, warnings and errors to stderr.
//!
//! On a terminal there is one live line, elsewhere plain lines. Colours follow `NO_COLOR`, `TERM=dumb`, `--no-color` and
//! whether the stream is a terminal.

use std::env;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::arguments::{Format, Global};
use crate::Error;
use crate::event::{Event, Observer};
use crate::report::text::{Line, Tone};

/// Where everything is shown.
pub struct Screen {
    format: Format,
    quiet: bool,
    verbose: bool,
    colour_out: bool,
    colour_err: bool,
    live: Option<ProgressBar>,
}

impl Screen {
    /// For this process's streams.
    pub fn new(global: &Global) -> Self {
        let plain = global.no_color
            || env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || env::var_os("TERM").is_some_and(|term| term == "dumb");
        let terminal = io::stderr().is_terminal() && !global.quiet;
        Self {
            format: global.format,
            quiet: global.quiet,
            verbose: global.verbose > 0,
            colour_out: !plain && io::stdout().is_terminal(),
            colour_err: !plain && io::stderr().is_terminal(),
            live: terminal.then(|| {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
                bar.set_style(ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}").unwrap_or_else(|_| {
                    // The template is a constant; a plain bar shows the same facts.
                    ProgressStyle::default_bar()
                }));
                bar
            }),
        }
    }

    /// Whether results are JSON.
    pub fn json(&self) -> bool {
        self.format == Format::Json
    }

    /// Writes a result.
    pub fn out(&self, text: &str) {
        self.settle();
        // A reader that went away (`| head`) is no error of ours.
        let _ = io::stdout().lock().write_all(text.as_bytes());
    }

    /// Writes a result as JSON.
    pub fn value(&self, value: &impl Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.out(&(text + "\n")),
            Err(error) => self.line("error", "31", &error.to_string()),
        }
    }

    /// Writes a table.
    pub fn table(&self, lines: &[Line]) {
        let mut text = String::new();
        for line in lines {
            let code = match line.tone {
                Tone::Plain => "",
                Tone::Heading => "1",
                Tone::Dim => "2",
                Tone::Good => "32",
                Tone::Caution => "33",
                Tone::Bad => "31",
            };
            text += &paint(self.colour_out, code, &line.text);
            text.push('\n');
        }
        self.out(&text);
    }

    /// Says something to the person at the terminal.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            self.print(text);
        }
    }

    /// Says what went wrong.
    pub fn error(&self, error: &Error) {
        self.settle();
        self.line("error", "1;31", &error.to_string());
    }

    fn line(&self, word: &str, code: &str, text: &str) {
        let word = paint(self.colour_err, code, &format!("{word}:"));
        self.print(&format!("{word} {text}"));
    }

    fn print(&self, text: &str) {
        match &self.live {
            Some(bar) => bar.suspend(|| write_err(text)),
            None => write_err(text),
        }
    }

    fn settle(&self) {
        if let Some(bar) = &self.live {
            bar.disable_steady_tick();
            bar.finish_and_clear();
        }
    }
}

impl Observer for Screen {
    fn event(&self, event: Event) {
        match event {
            Event::Warning(text) => self.line("warning", "33", &text),
            _ if self.quiet => {}
            Event::Note(text) => self.print(&text),
            Event::StageStarted { stage, units } => match &self.live {
                Some(bar) => {
                    bar.set_message(format!("{stage}: 0 of {units}"));
                    bar.enable_steady_tick(Duration::from_millis(200));
                }
                None => self.print(&format!("{stage}: {units} to do")),
            },
            Event::UnitFinished { stage, done, units, detail } => {
                let text = format!("{stage} {done}/{units}: {detail}");
                if let Some(bar) = &self.live {
                    bar.set_message(text.clone());
                }
                if self.live.is_none() || self.verbose {
                    self.print(&text);
                }
            }
        }
    }
}

/// Tells the person who pressed Ctrl-C what happens now.
pub fn say_stopping() {
    write_err("\nstopping when the current unit is finished; press Ctrl-C again to stop at once");
}

fn write_err(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

fn paint(colour: bool, code: &str, text: &str) -> String {
    if colour && !code.is_empty() && !text.is_empty() {
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}
