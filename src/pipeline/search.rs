//! Learned edits of one cell: the settings of its search, and its repetitions, fitted together where the model is small.

use super::bench::{Side, Subject};
use super::cell::{Candidate, Cell, Fitted, Range, found, learned, place, plain_fit, settings_of};
use crate::attack::form::Form;
use crate::attack::learned::{Fit, Wanted, fit_together};
use crate::attack::spec::Search;
use crate::attack::{self, AttackData};
use crate::intervention::Edit;
use crate::math::seed::Stream;
use crate::model::Decoder;
use crate::{Error, Result};

/// One fit of a learned edit.
pub(super) struct Setting<'a> {
    pub settings: Fit,
    /// Only pairs of this opening; absent: all.
    pub opening: Option<&'a str>,
    /// Where the edit starts; absent: from fresh factors.
    pub start: Option<&'a Edit>,
    /// Name of its random stream.
    pub stream: String,
}

impl Setting<'_> {
    /// The cell's own, without a search.
    pub fn of(cell: &Cell, form: Form, side: Side) -> Self {
        let stream = format!("attack/{}", place(cell, side));
        Self { settings: learned(cell, form, cell.spec.learning_rate), opening: None, start: None, stream }
    }
}

/// The edits of `settings`, in their order.
pub(super) fn fit_all(
    decoder: &Decoder,
    data: &AttackData,
    seed: u64,
    settings: &[&Setting<'_>],
) -> Result<Vec<attack::Found>> {
    let mut streams: Vec<Stream> = settings.iter().map(|setting| Stream::new(seed, &setting.stream)).collect();
    let wanted = settings.iter().zip(&mut streams).map(|(setting, stream)| {
        let Setting { settings, opening, start, .. } = setting;
        Wanted { settings, opening: *opening, start: *start, stream }
    });
    fit_together(decoder, data, wanted.collect())
}

/// A setting that a search tries.
struct Tried<'a> {
    setting: Setting<'a>,
    /// Of its unit.
    key: String,
    /// For the reader.
    choice: String,
}

impl Range<'_, '_> {
    /// The worst case over the search's grid, chosen on the validation hazards; stops when all of them fall.
    pub(super) fn search(
        &self,
        cell: &Cell,
        form: Form,
        search: &Search,
        subject: Subject<'_>,
        start: Option<&Edit>,
    ) -> Result<Fitted> {
        let warm = start.filter(|_| search.start_from_base);
        let starts: Vec<Option<&Edit>> = [None].into_iter().chain(warm.map(Some)).collect();
        let openings: Vec<Option<&str>> = match search.openings.as_slice() {
            [] => vec![None],
            named => named.iter().map(|name| Some(name.as_str())).collect(),
        };
        let mut grid: Vec<Tried<'_>> = vec![];
        for seed in 0..search.seeds {
            for opening in &openings {
                for start in &starts {
                    let tried = |rate: &f64| self.tried(cell, form, subject, (seed, *opening, *start, *rate));
                    grid.extend(search.learning_rates.iter().map(tried));
                }
            }
        }
        let (mut best, mut tried, mut evaluations): (Option<(Candidate, &str)>, usize, u64) = (None, 0, 0);
        'grid: for group in grid.chunks(self.bench.together) {
            // All of a group or none, so that a search that goes on fits the same edits as one that was not stopped.
            let mut edits: Vec<attack::Found> = vec![];
            for (number, Tried { key, choice, .. }) in group.iter().enumerate() {
                let candidate = self.units.cached(key, || {
                    if edits.is_empty() {
                        let settings: Vec<&Setting<'_>> = group.iter().map(|tried| &tried.setting).collect();
                        edits = fit_all(subject.decoder, &self.bench.attack, self.bench.seed, &settings)?;
                    }
                    let attack::Found { edit, gradient_evaluations } = edits[number].clone();
                    self.candidate(cell, subject, edit, gradient_evaluations as u64)
                })?;
                tried += 1;
                evaluations += candidate.gradient_evaluations;
                let done = candidate.counts.n > 0 && candidate.counts.successes == candidate.counts.n;
                if best.as_ref().is_none_or(|(best, _)| candidate.counts.successes > best.counts.successes) {
                    best = Some((candidate, choice));
                }
                if done {
                    break 'grid;
                }
            }
        }
        let (best, choice) =
            best.ok_or_else(|| Error::input(&cell.name, "expected a search of one setting at least"))?;
        let search = format!(
            "{} step sizes x {} starts x {} openings x {} seeds, {tried} of {} tried, chosen on {} validation prompts",
            search.learning_rates.len(),
            starts.len(),
            openings.len(),
            search.seeds,
            grid.len(),
            best.counts.n
        );
        Ok(Fitted { choice: choice.into(), search, ..found(best.edit, evaluations) })
    }

    fn tried<'a>(
        &self,
        cell: &Cell,
        form: Form,
        subject: Subject<'_>,
        (seed, opening, start, rate): (usize, Option<&'a str>, Option<&'a Edit>, f64),
    ) -> Tried<'a> {
        let from = if start.is_some() { "base edit" } else { "random" };
        let opened = opening.unwrap_or("any");
        let name = format!("{}/{rate:e}/{from}/{opened}/{seed}", place(cell, Side::Hardened));
        let settings = learned(cell, form, rate);
        let what = (subject.identity, settings_of(&settings), cell.spec.pairs, opening, start, seed);
        Tried {
            key: self.bench.key(&format!("search/{name}"), &what),
            choice: format!("step size {rate}, {from} start, opening {opened}"),
            setting: Setting { settings, opening, start, stream: format!("attack/{name}") },
        }
    }

    /// Fits the repetitions of one row at one place, which are always measured together, where they are learned edits without
    /// a search; [`Range::fit`] finds them then.
    ///
    /// # Errors
    /// As [`Range::fit`].
    pub fn fit_repetitions(&self, cells: &[&Cell], subject: Subject<'_>, side: Side) -> Result<()> {
        for cells in cells.chunks(self.bench.together) {
            let settings: Option<Vec<Setting<'_>>> = cells.iter().map(|cell| plain_fit(cell, side)).collect();
            let Some(settings) = settings.filter(|_| cells.len() > 1) else { continue };
            let keys: Vec<String> = cells.iter().map(|cell| self.fit_key(cell, subject, side, None)).collect();
            if keys.iter().all(|key| self.units.has(key)) {
                continue;
            }
            let settings: Vec<&Setting<'_>> = settings.iter().collect();
            let edits = fit_all(subject.decoder, &self.bench.attack, self.bench.seed, &settings)?;
            for (key, attack::Found { edit, gradient_evaluations }) in keys.iter().zip(edits) {
                let sized = || self.sized(subject.decoder, found(edit, gradient_evaluations as u64));
                self.units.cached(key, sized)?;
            }
        }
        Ok(())
    }
}
