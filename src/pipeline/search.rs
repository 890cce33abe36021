//! The attacker who searches: learned edits of several step sizes, starts, openings and seeds, of which the worst counts.

use super::bench::{Side, Subject};
use super::cell::{
    Candidate, Cell, Fitted, OF_BASE, Range, at_edge, found, learned, order, place, settings_of, upwards,
};
use super::device::fitted_together;
use crate::attack::Found;
use crate::attack::form::Form;
use crate::attack::learned::{Given, fit_together};
use crate::attack::spec::Search;
use crate::intervention::Edit;
use crate::math::seed::Stream;
use crate::{Error, Result};

/// Settings of a search that differ in their step size alone, and are fitted together.
struct Group<'a> {
    seed: usize,
    given: Given<'a>,
    rates: &'a [f64],
    /// Number of the settings that differ in their step size alone, these among them.
    ladder: usize,
}

impl Range<'_, '_> {
    /// The worst case over the search's grid, chosen on the validation hazards; stops after the group in which all of them fall.
    pub(super) fn search(
        &self,
        cell: &Cell,
        form: Form,
        search: &Search,
        subject: Subject<'_>,
        start: Option<&Edit>,
    ) -> Result<Fitted> {
        let starts: Vec<Option<&Edit>> = [None].into_iter().chain(start.map(Some)).collect();
        // A single opening is easier to aim for, the mixture has more pairs.
        let openings: Vec<Option<&str>> =
            [None].into_iter().chain(search.openings.iter().map(|name| Some(name.as_str()))).collect();
        let mut rates = search.learning_rates.clone();
        upwards(&mut rates);
        let device = subject.decoder.device();
        let together = fitted_together(subject.decoder.blueprint(), device, cell.spec.batch);
        let (mut groups, mut ladder): (Vec<Group<'_>>, usize) = (vec![], 0);
        for seed in 0..search.seeds {
            for &opening in &openings {
                for &start in &starts {
                    let chunks = rates.chunks(together);
                    groups.extend(chunks.map(|rates| Group { seed, given: Given { opening, start }, rates, ladder }));
                    ladder += 1;
                }
            }
        }
        let pairs = |opening| self.bench.attack.chosen(opening, cell.spec.pairs).count() as u64;
        let mut tried: Vec<((Candidate, String), u64)> = vec![];
        let mut rungs = vec![];
        if let Some(edit) = start {
            // Nothing keeps an attacker from what was fitted on the base, as it is.
            let key =
                self.bench.key(&format!("search/{}/{OF_BASE}", place(cell, Side::Hardened)), &(subject.identity, edit));
            let as_it_is = self.units.cached(&key, || self.candidate(cell, subject, edit.clone(), 0))?;
            rungs.push((None, as_it_is.counts));
            tried.push(((as_it_is, OF_BASE.into()), pairs(None)));
        }
        for group in &groups {
            let of_group = pairs(group.given.opening);
            let fitted = self.candidates(cell, form, subject, group)?;
            rungs.extend(fitted.iter().map(|(one, _)| (Some(group.ladder), one.counts)));
            tried.extend(fitted.into_iter().map(|one| (one, of_group)));
            if tried.iter().any(|((one, _), _)| one.counts.n > 0 && one.counts.successes == one.counts.n) {
                break;
            }
        }
        let count = tried.len() - usize::from(start.is_some());
        let evaluations = tried.iter().map(|((one, _), _)| one.gradient_evaluations).sum();
        // The first of the best.
        let best = tried.into_iter().enumerate().rev().max_by_key(|(_, ((one, _), _))| order(&one.counts));
        let (at, ((best, choice), pairs)) =
            best.ok_or_else(|| Error::input(&cell.name, "expected a search of one setting at least"))?;
        let at_edge = at_edge(&rungs, at);
        let search = format!(
            "{} step sizes x {} starts x {} openings x {} seeds, {count} of {} fitted{}, chosen on {} validation prompts",
            rates.len(),
            starts.len(),
            openings.len(),
            search.seeds,
            groups.iter().map(|group| group.rates.len()).sum::<usize>(),
            if start.is_some() { " beside that of the base" } else { "" },
            best.counts.n
        );
        Ok(Fitted { choice, search, at_edge, pairs: Some(pairs), ..found(best.edit, evaluations) })
    }

    /// Every setting of a group with how it did, in the group's order, and in words.
    fn candidates(
        &self,
        cell: &Cell,
        form: Form,
        subject: Subject<'_>,
        group: &Group<'_>,
    ) -> Result<Vec<(Candidate, String)>> {
        let Group { seed, given, rates, .. } = *group;
        let Given { opening, start } = given;
        let from = if start.is_some() { "base edit" } else { "random" };
        let opened = opening.unwrap_or("any");
        let name = |rate: f64| format!("{}/{rate:e}/{from}/{opened}/{seed}", place(cell, Side::Hardened));
        let fit_all = || -> Result<Vec<Found>> {
            let stream = |rate: &f64| Stream::new(self.bench.seed, &format!("attack/{}", name(*rate)));
            let mut streams: Vec<Stream> = rates.iter().map(stream).collect();
            let (settings, wanted) = (learned(cell, form, rates[0]), rates.iter().copied().zip(&mut streams).collect());
            fit_together(subject.decoder, &self.bench.attack, &settings, given, wanted)
        };
        // All of a group or none: a search that goes on fits what one that was not stopped does.
        let mut edits: Vec<Found> = vec![];
        let mut candidates = vec![];
        for (number, &rate) in rates.iter().enumerate() {
            let settings = settings_of(&learned(cell, form, rate));
            let what = (subject.identity, settings, cell.spec.pairs, opening, start, seed, rates);
            let candidate = self.units.cached(&self.bench.key(&format!("search/{}", name(rate)), &what), || {
                if edits.is_empty() {
                    edits = fit_all()?;
                }
                let Found { edit, gradient_evaluations } = edits[number].clone();
                self.candidate(cell, subject, edit, gradient_evaluations as u64)
            })?;
            candidates.push((candidate, format!("step size {rate}, {from} start, opening {opened}")));
        }
        Ok(candidates)
    }
}
