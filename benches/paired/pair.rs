//! Two programs in turn, in one run: a ratio of neighbours survives a machine whose speed drifts, a single time doesn't.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Seconds of both sides, round by round.
pub struct Pair {
    pub what: String,
    pub against: &'static str,
    pub ours: Vec<f64>,
    pub theirs: Vec<f64>,
    /// Something to be known about the row.
    pub note: String,
}

impl Pair {
    /// Runs both sides `rounds` times in turn after one round that does not count.
    pub fn run(
        what: impl Into<String>,
        against: &'static str,
        rounds: usize,
        mut ours: impl FnMut() -> Outcome<f64>,
        mut theirs: impl FnMut() -> Outcome<f64>,
    ) -> Outcome<Self> {
        let mut pair = Self { what: what.into(), against, ours: Vec::new(), theirs: Vec::new(), note: String::new() };
        for round in 0..=rounds {
            let times = (ours()?, theirs()?);
            if round > 0 {
                pair.ours.push(times.0);
                pair.theirs.push(times.1);
            }
        }
        Ok(pair)
    }

    /// A row of a Markdown table: medians, and the median and extremes of the ratios of neighbours.
    pub fn row(&self) -> String {
        let ratios: Vec<f64> = self.ours.iter().zip(&self.theirs).map(|(a, b)| a / b).collect();
        let (low, high) = ratios.iter().fold((f64::MAX, 0.0_f64), |(l, h), r| (l.min(*r), h.max(*r)));
        format!(
            "| {} | {} | {} | {} | **{:.3}** ({low:.3} to {high:.3}, n = {}) | {} |",
            self.what,
            seconds(median(&self.ours)),
            self.against,
            seconds(median(&self.theirs)),
            median(&ratios),
            ratios.len(),
            self.note
        )
    }
}

pub const HEAD: &str = "| what | immunise | against | its time | ratio | note |\n|---|---|---|---|---|---|";

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

pub fn seconds(time: f64) -> String {
    if time < 1.0 { format!("{:.1} ms", time * 1e3) } else { format!("{time:.2} s") }
}

/// The other side: `peer.py TASK SETTINGS` gets ready, then answers every line with a JSON value.
pub struct Peer {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts the interpreter named by `IMMUNISE_PYTHON` (else `python3`) and waits until it is ready.
    pub fn start(task: &str, settings: &Value) -> Outcome<Self> {
        let python = std::env::var("IMMUNISE_PYTHON").unwrap_or_else(|_| "python3".into());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/paired/peer.py");
        let mut child = Command::new(&python)
            .args([script, task, &settings.to_string()])
            // Threads that spin while they wait would take the processor from the side whose turn it is.
            .env("OMP_WAIT_POLICY", "passive")
            .env("KMP_BLOCKTIME", "0")
            .env("OMP_NUM_THREADS", rayon::current_num_threads().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{python}: {error} (set IMMUNISE_PYTHON to one that has torch)"))?;
        let to = child.stdin.take();
        let from = BufReader::new(child.stdout.take().ok_or("expected a pipe from the peer")?);
        let mut peer = Self { child, to, from };
        peer.answer()?;
        Ok(peer)
    }

    /// Sends one line and returns the answer.
    pub fn ask(&mut self, question: &str) -> Outcome<Value> {
        let to = self.to.as_mut().ok_or("expected a pipe to the peer")?;
        writeln!(to, "{question}")?;
        to.flush()?;
        self.answer()
    }

    /// Seconds that one run of the task took.
    pub fn time(&mut self) -> Outcome<f64> {
        self.ask("run")?.as_f64().ok_or_else(|| "expected seconds".into())
    }

    fn answer(&mut self) -> Outcome<Value> {
        let mut line = String::new();
        if self.from.read_line(&mut line)? == 0 {
            return Err("the peer ended; does its Python have torch and transformers?".into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // A closed pipe ends the peer's loop.
        drop(self.to.take());
        let _ = self.child.wait();
    }
}
