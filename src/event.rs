//! What the library tells the outside while it works. The library never prints; `cli` decides how events look.

/// One thing that happened during a run.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A stage of the pipeline begins, with the number of units it consists of.
    StageStarted {
        /// Stage name, such as `et` or `attack hardened`.
        stage: String,
        /// Units (blocks, outer steps, attack cells) to come.
        units: usize,
    },
    /// One unit of the current stage is done.
    UnitFinished {
        /// Stage name.
        stage: String,
        /// Units finished so far, this one included.
        done: usize,
        /// Units in the stage.
        units: usize,
        /// One line on what was found, such as `block 3: asr 0.98`.
        detail: String,
    },
    /// Something that a person should read but that stops nothing.
    Warning(String),
    /// A fact about the run.
    Note(String),
}

/// Receives events; called from worker threads too.
pub trait Observer: Send + Sync {
    /// Takes one event. Must not block for long.
    fn event(&self, event: Event);
}

/// Drops every event.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _: Event) {}
}
