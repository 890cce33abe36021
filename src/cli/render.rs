//! The only code that writes to the terminal: results to stdout, progress, warnings and errors to stderr.
//!
//! On a terminal there is one live line with the stage, what was found last and how long the stage will still take;
//! elsewhere plain lines, and with `--progress json` an object a line, for programs. Colours follow `NO_COLOR`,
//! `TERM=dumb`, `--no-color` and whether the stream is a terminal; tables are as wide as `COLUMNS` or the terminal.

use std::borrow::Cow;
use std::env;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};
use terminal_size::{Height, Width, terminal_size_of};

use super::arguments::{Format, Global, Progress};
use super::pace::{Pace, left};
use crate::event::{Event, Observer};
use crate::report::Report;
use crate::report::text::{self, Detail, Line, Tone};
use crate::{Error, Result};

/// Tables are not drawn wider, however wide the terminal is.
const WIDEST: usize = 160;

/// Whether this process writes objects to stderr, for the handler of Ctrl-C.
static OBJECTS: AtomicBool = AtomicBool::new(false);

/// Where everything is shown.
pub struct Screen {
    format: Format,
    objects: bool,
    quiet: bool,
    verbose: bool,
    terminal_out: bool,
    colour_out: bool,
    colour_err: bool,
    width: usize,
    /// Lines of the terminal that stdout is, if it is one.
    height: Option<usize>,
    live: Option<ProgressBar>,
    started: Instant,
    pace: Mutex<Pace>,
    /// The first result that could not be written.
    unwritten: Mutex<Option<io::Error>>,
}

impl Screen {
    /// For this process's streams.
    pub fn new(global: &Global) -> Self {
        let plain = global.no_color
            || env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || env::var_os("TERM").is_some_and(|term| term == "dumb");
        let objects = global.progress == Progress::Json;
        OBJECTS.store(objects, Ordering::Relaxed);
        let terminal = io::stderr().is_terminal() && !global.quiet && global.progress == Progress::Auto;
        let size = terminal_size_of(io::stdout()).map(|(Width(width), Height(height))| (width.into(), height.into()));
        Self {
            format: global.format,
            objects,
            quiet: global.quiet,
            verbose: global.verbose > 0,
            terminal_out: io::stdout().is_terminal(),
            colour_out: !plain && io::stdout().is_terminal(),
            colour_err: !plain && !objects && io::stderr().is_terminal(),
            width: width(env::var("COLUMNS").ok().as_deref(), size.map(|(width, _)| width)),
            height: size.map(|(_, height)| height),
            live: terminal.then(|| {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
                bar.set_style(ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}").unwrap_or_else(|_| {
                    // The template is a constant; a plain bar shows the same facts.
                    ProgressStyle::default_bar()
                }));
                bar
            }),
            started: Instant::now(),
            pace: Mutex::default(),
            unwritten: Mutex::default(),
        }
    }

    /// Whether results are JSON.
    pub fn json(&self) -> bool {
        self.format == Format::Json
    }

    /// Writes a result: as it is, but for what would steer a terminal that it goes to.
    pub fn out(&self, text: &str) {
        if self.terminal_out { self.write(&harmless(text)) } else { self.write(text) }
    }

    fn write(&self, text: &str) {
        self.settle();
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            // A reader that went away (`| head`) is no error of ours.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                self.unwritten.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
            _ => {}
        }
    }

    /// Whether every result could be written.
    ///
    /// # Errors
    /// [`Error::Io`] with the first that could not: the disk that stdout goes to is full, say.
    pub fn written(&self) -> Result<()> {
        match self.unwritten.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(Error::io(Path::new("standard output"), error)),
            None => Ok(()),
        }
    }

    /// Writes a result as JSON.
    pub fn value(&self, value: &impl Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.out(&(text + "\n")),
            Err(error) => self.message("error", "1;31", &error.to_string()),
        }
    }

    /// Writes a report as tables, or as JSON.
    ///
    /// Where it is taller than the terminal its attacks are summed up over their blocks, unless `--verbose` asks for all.
    pub fn report(&self, report: &Report) {
        if self.json() {
            return self.out(&report.to_json());
        }
        let all = text::lines(report, Detail::Cells, self.width);
        if self.verbose || self.height.is_none_or(|height| all.len() < height) {
            return self.table(&all);
        }
        self.table(&text::lines(report, Detail::Attacks, self.width));
        self.say("every block: `--verbose`, or `immunise report show` on the report");
    }

    fn table(&self, lines: &[Line]) {
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
            text += &paint(self.colour_out, code, &harmless(&line.text));
            text.push('\n');
        }
        self.write(&text);
    }

    /// Says something to the person at the terminal.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            self.note(text);
        }
    }

    /// Says something that a program gets as a value, under the name `event`.
    pub fn announce(&self, event: &str, value: &impl Serialize, text: &str) {
        if self.quiet {
            return;
        }
        if self.objects {
            let mut object = json!({"event": event});
            object[event] = serde_json::to_value(value).unwrap_or_default();
            self.print(&object.to_string());
        } else {
            self.print(&harmless(text.trim_end_matches('\n')));
        }
    }

    /// Says what went wrong.
    pub fn error(&self, error: &Error) {
        self.settle();
        if self.objects {
            let text = error.to_string();
            let (text, hint) = text.split_once(HINT).map_or((text.as_str(), None), |(text, hint)| (text, Some(hint)));
            self.object(json!({"event": "error", "text": text, "hint": hint, "exit_code": error.exit_code()}));
        } else {
            self.message("error", "1;31", &error.to_string());
        }
    }

    /// A line that begins with a word for its weight.
    fn message(&self, word: &str, code: &str, text: &str) {
        if self.objects {
            return self.object(json!({"event": word, "text": text}));
        }
        let hint = format!("\n{} ", paint(self.colour_err, "1;36", HINT.trim()));
        let word = paint(self.colour_err, code, &format!("{word}:"));
        self.print(&format!("{word} {}", harmless(text).replace(HINT, &hint)));
    }

    fn note(&self, text: &str) {
        if self.objects { self.object(json!({"event": "note", "text": text})) } else { self.print(&harmless(text)) }
    }

    fn object(&self, value: Value) {
        self.print(&value.to_string());
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

    fn stage_started(&self, stage: &str, units: usize) {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner).begin(stage, self.started.elapsed());
        if self.objects {
            return self.object(json!({"event": "stage", "stage": stage, "units": units}));
        }
        match &self.live {
            Some(bar) => {
                bar.set_message(format!("{stage} 0/{units}"));
                bar.enable_steady_tick(Duration::from_millis(200));
            }
            None => self.print(&format!("{stage}: {units} to do")),
        }
    }

    fn unit_finished(&self, stage: &str, done: usize, units: usize, detail: &str) {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let remaining = pace.finish(stage, done, units, self.started.elapsed());
        drop(pace);
        if self.objects {
            let seconds = remaining.map(|left| left.as_secs());
            let unit = json!({"event": "unit", "stage": stage, "done": done, "units": units, "detail": detail, "seconds_left": seconds});
            return self.object(unit);
        }
        let detail = harmless(detail);
        let text = format!("{stage} {done}/{units}: {detail}");
        match &self.live {
            Some(bar) => {
                let time = remaining.map_or_else(String::new, |duration| format!(", {}", left(duration)));
                bar.set_message(format!("{stage} {done}/{units}{time}: {detail}"));
                // Stages that do not say when they begin still have a line that lives.
                bar.enable_steady_tick(Duration::from_millis(200));
                if self.verbose {
                    self.print(&text);
                }
            }
            None => self.print(&text),
        }
    }
}

impl Observer for Screen {
    fn event(&self, event: Event) {
        match event {
            Event::Warning(text) => self.message("warning", "33", &text),
            _ if self.quiet => {}
            Event::Note(text) => self.note(&text),
            Event::StageStarted { stage, units } => self.stage_started(&stage, units),
            Event::UnitFinished { stage, done, units, detail } => self.unit_finished(&stage, done, units, &detail),
        }
    }
}

/// What stands before a hint in the text of an error.
const HINT: &str = "\nhint: ";

/// Columns for tables: what `COLUMNS` says, else the terminal's, else a fixed number.
fn width(columns: Option<&str>, terminal: Option<usize>) -> usize {
    let said = columns.and_then(|columns| columns.parse().ok());
    said.or(terminal).unwrap_or(text::WIDTH).clamp(text::NARROWEST, WIDEST)
}

/// Tells the person who pressed Ctrl-C what happens now.
pub fn say_stopping() {
    let text = "stopping when the current unit is finished; press Ctrl-C again to stop at once";
    if OBJECTS.load(Ordering::Relaxed) {
        write_err(&json!({"event": "note", "text": text}).to_string());
    } else {
        write_err(&format!("\n{text}"));
    }
}

/// `text` without characters that steer a terminal: names of files and of rows come from strangers.
fn harmless(text: &str) -> Cow<'_, str> {
    let steers = |character: char| character.is_control() && !matches!(character, '\n' | '\t');
    if text.contains(steers) { text.replace(steers, "\u{fffd}").into() } else { text.into() }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_width_is_what_columns_says_and_stays_within_reason() {
        let widths =
            [(None, None), (Some("80"), Some(120)), (None, Some(120)), (Some("9"), None), (Some("x"), Some(500))];
        assert_eq!(widths.map(|(columns, terminal)| width(columns, terminal)), [100, 80, 120, 72, 160]);
    }

    #[test]
    fn nothing_that_steers_a_terminal_reaches_it() {
        assert_eq!(harmless("a\u{1b}[2Jb\r\u{9b}c\nd\té"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}c\nd\té");
        assert!(matches!(harmless("plain\ntext"), Cow::Borrowed(_)));
    }
}
