//! The grid of attacks: from a recipe's rows to cells, and from the cells' counts to the rows of a report.
//!
//! A cell's edit is fitted on the base once. It is the frozen row's edit, gives the un-hardened value of both rows, and is
//! where a search on the hardened model may start. Cells run side by side and each is serial inside; rows come out in
//! the order of the recipe, whatever finished first. Where a recipe asks for `random` controls, ablations and added
//! directions get one of their own kind and size as well.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::artefact::{check_artefact, needs_base};
use super::bench::{Bench, Side, Subject, Units};
use super::budget::{self, Bill, Cost, Terms};
use super::cell::{Cell, Fitted, Range, kind_name, name_of, steps};
use super::controls::{RandomSizes, like, of_learned, without_edit};
use super::examiner::Counts;
use super::weights::Reweighting;
use crate::attack::spec::{AttackKind, Knowledge, Method};
use crate::event::{Event, Observer};
use crate::intervention::Positions;
use crate::model::Decoder;
use crate::recipe::{MAX_CELLS, Suite};
use crate::report::wording::{percent, ranges};
use crate::report::{self, Agreement, AttackRow, Budget, Calibration, Outcome, Rates, Shard, SkipReason, SkippedRow};
use crate::{Error, Result};

/// The cells of a suite, attacks before controls.
#[derive(Debug, Clone, Default)]
pub struct Grid {
    /// Attacks.
    pub attacks: Vec<Cell>,
    /// Random edits and no edit.
    pub controls: Vec<Cell>,
    /// What no budget was left for, with what it would have cost; [`Grid::select`] puts it here.
    pub skipped: Vec<(Cell, Cost)>,
    /// What the suite grants.
    pub terms: Terms,
    /// Names that the suite has at several choices of tokens, whichever are selected.
    shared: BTreeSet<String>,
}

/// Which cells of a grid are wanted.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Rows of these names only; empty: all.
    pub names: Vec<String>,
    /// Cells of these blocks only; empty: all.
    pub blocks: Vec<usize>,
    /// Cells at these tokens only; empty: all.
    pub positions: Vec<Positions>,
    /// Every `count`th row and place, starting from number `index`, with its repetitions and its control.
    pub shard: Option<Shard>,
}

/// What the base answered in each cell, in the grid's order.
pub type BaseCells = Vec<(Fitted, Counts)>;

impl Grid {
    /// The cells of `suite` on a model of `n_layers` blocks.
    ///
    /// # Errors
    /// When a row names a block that the model does not have; [`Error::Usage`] naming the row with which there are more than
    /// [`MAX_CELLS`].
    pub fn new(suite: &Suite, n_layers: usize) -> Result<Self> {
        let mut grid = Self { terms: Terms::of(suite), ..Self::default() };
        let mut names: Vec<(String, Positions)> = vec![];
        let sizes = RandomSizes::of(suite, n_layers)?;
        for (row, spec) in suite.attacks.iter().enumerate() {
            let blocks = spec.layers.resolve(n_layers, &format!("suite.attacks.{row}.layers"))?;
            let places: Vec<Vec<usize>> =
                if spec.acts_on_all() { vec![blocks] } else { blocks.into_iter().map(|block| vec![block]).collect() };
            let cells = places.len().saturating_mul(spec.seeds);
            if grid.len().saturating_add(cells) > MAX_CELLS {
                let key = if spec.seeds > 1 { "seeds" } else { "layers" };
                let got = format!("{} before this row and {cells} of it", grid.len());
                let problem = format!("expected at most {MAX_CELLS} cells in all, got {got}");
                return Err(Error::usage(format!("`suite.attacks.{row}.{key}`: {problem}")));
            }
            let mut name = match spec.kind {
                kind if matches!(kind.method(), Method::Projected | Method::Abliterated) && places[0].len() > 1 => {
                    format!("{} best of {}", name_of(spec), places[0].len())
                }
                AttackKind::Random => format!("random r{} p{}", spec.rank, spec.pairs),
                _ => name_of(spec),
            };
            let known = (name.clone(), spec.positions);
            let repeats = names.iter().filter(|other| **other == known).count();
            names.push(known);
            if repeats > 0 {
                name = format!("{name} #{}", repeats + 1);
            }
            for place in places {
                for seed in 0..spec.seeds {
                    let cell = Cell {
                        row,
                        name: name.clone(),
                        spec: spec.clone(),
                        layers: place.clone(),
                        seed,
                        control_of: None,
                    };
                    let method = spec.kind.method();
                    match (spec.kind, method) {
                        (AttackKind::Random, _) => grid.controls.push(of_learned(cell)),
                        (_, Method::Control) => grid.controls.push(cell),
                        (AttackKind::Quantised, _) => {
                            grid.controls.push(without_edit(&cell));
                            grid.attacks.push(cell);
                        }
                        // The `random` row itself is the control of an attack of its settings and block.
                        (AttackKind::Noreft, _) if !spec.joint && sizes.has(spec, &place) => grid.attacks.push(cell),
                        _ => {
                            let always = matches!(method, Method::Given | Method::Weights);
                            if (sizes.any() || always) && cell.seed == 0 {
                                grid.controls.push(like(&cell));
                            }
                            grid.attacks.push(cell);
                        }
                    }
                }
            }
        }
        grid.shared = grid.shared_names();
        Ok(grid)
    }

    fn shared_names(&self) -> BTreeSet<String> {
        let mut first: BTreeMap<&str, Positions> = BTreeMap::new();
        let mut shared = BTreeSet::new();
        for cell in self.cells() {
            let positions = cell.spec.positions;
            if *first.entry(&cell.name).or_insert(positions) != positions {
                shared.insert(cell.name.clone());
            }
        }
        shared
    }

    /// Refuses artefacts that `decoder` has no use for: nobody should learn that after hours of work.
    ///
    /// # Errors
    /// [`Error::Input`] naming the file and what is wrong with it, [`Error::Io`].
    pub fn check_artefacts(&self, decoder: &Decoder) -> Result<()> {
        // A row has one, whatever its cells.
        let mut rows = BTreeSet::new();
        self.cells().filter(|cell| rows.insert(cell.row)).try_for_each(|cell| check_artefact(cell, decoder))
    }

    /// The chosen cells that the suite's budget pays for; chosen ones that it does not pay for are in `skipped`.
    ///
    /// Rows and blocks are chosen first, then paid for, then parted, so that a part leaves out what the whole leaves out.
    /// `with_base`: whether the un-hardened model is measured as well.
    #[must_use]
    pub fn select(mut self, selection: &Selection, with_base: bool) -> Self {
        let numbers = self.numbers();
        let wanted = |cell: &Cell| {
            let named = selection.names.is_empty() || selection.names.contains(&cell.name);
            let acts = selection.positions.is_empty() || selection.positions.contains(&cell.spec.positions);
            let there = selection.blocks.is_empty() || cell.layers.iter().any(|layer| selection.blocks.contains(layer));
            named && acts && there
        };
        let chosen: Vec<(usize, &Cell)> =
            numbers.iter().copied().zip(self.cells()).filter(|(_, cell)| wanted(cell)).collect();
        let unpaid: BTreeMap<usize, Cost> = budget::bills(&self.terms, &chosen, with_base)
            .into_iter()
            .filter(|bill| !bill.paid)
            .map(|bill| (bill.group, bill.cost))
            .collect();
        let mine = |number: usize| {
            selection.shard.is_none_or(|shard| number % shard.count as usize == shard.index as usize - 1)
        };
        let mut skipped: Vec<(Cell, Cost)> = vec![];
        let mut numbers = numbers.into_iter();
        let mut keep = |cell: &Cell| {
            let number = numbers.next().unwrap_or_default();
            let here = wanted(cell) && mine(number);
            if let Some(cost) = unpaid.get(&number).filter(|_| here) {
                skipped.push((cell.clone(), *cost));
            }
            here && !unpaid.contains_key(&number)
        };
        self.attacks.retain(&mut keep);
        self.controls.retain(keep);
        self.skipped = skipped;
        self
    }

    /// What every group of the grid costs, and whether the suite's budget pays for it.
    #[must_use]
    pub fn bills(&self, with_base: bool) -> Vec<Bill<'_>> {
        let cells: Vec<(usize, &Cell)> = self.numbers().into_iter().zip(self.cells()).collect();
        budget::bills(&self.terms, &cells, with_base)
    }

    /// Number of the group of each cell, in order.
    fn numbers(&self) -> Vec<usize> {
        let mut groups: Vec<(usize, &[usize])> = vec![];
        let number = |cell| {
            let group = self.group(cell);
            groups.iter().position(|other| *other == group).unwrap_or_else(|| {
                groups.push(group);
                groups.len() - 1
            })
        };
        self.cells().map(number).collect()
    }

    /// The rows that were skipped, repetitions joined.
    #[must_use]
    pub fn skipped_rows(&self) -> Vec<SkippedRow> {
        let mut rows: Vec<SkippedRow> = vec![];
        for (cell, cost) in &self.skipped {
            let row = SkippedRow {
                name: cell.name.clone(),
                family: kind_name(cell.spec.kind).into(),
                layers: cell.layers.clone(),
                positions: positions_name(cell.spec.positions).into(),
                control: is_control(cell),
                reason: SkipReason::Budget,
                gradient_evaluations: cost.gradient_evaluations,
                generated_tokens: cost.generated_tokens,
            };
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
        rows
    }

    /// What may not be parted: the repetitions of a row at one place, which make one figure, and its control, which takes
    /// the size of the edit.
    fn group<'a>(&'a self, cell: &'a Cell) -> (usize, &'a [usize]) {
        let same = |attack: &&Cell, of: &Cell| {
            attack.name == of.name && attack.layers == cell.layers && attack.spec.positions == of.spec.positions
        };
        let attack = |of: &Cell| self.attacks.iter().find(|attack| same(attack, of));
        let like = cell.control_of.as_deref().and_then(attack).unwrap_or(cell);
        (like.row, &like.layers)
    }

    /// Number of cells.
    #[must_use]
    pub fn len(&self) -> usize {
        self.attacks.len() + self.controls.len()
    }

    /// Whether there is no cell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn cells(&self) -> impl Iterator<Item = &Cell> {
        self.attacks.iter().chain(&self.controls)
    }
}

/// Fits every cell on the base and measures the base under it.
///
/// # Errors
/// As [`Grid::check_artefacts`], those of the attacks, and [`Error::Interrupted`] at a unit's end.
pub fn measure_base(
    grid: &Grid,
    bench: &Bench,
    base: Subject<'_>,
    units: &Units<'_>,
    observer: &dyn Observer,
) -> Result<BaseCells> {
    grid.check_artefacts(base.decoder)?;
    let range = Range { bench, units, base: Some(base) };
    let progress = Progress::start("attack base", grid.len(), observer);
    let one = |cell: &Cell| {
        let fitted = range.fit(cell, base, Side::Base, None)?;
        let counts = range.score(cell, base, &fitted)?;
        progress.finish(cell, &format!("asr {}", percent(counts.success())));
        Ok((fitted, counts))
    };
    // Controls take the size of an attack's edit, so attacks are fitted first.
    let mut cells = each(base, &grid.attacks, one)?;
    cells.extend(each(base, &grid.controls, one)?);
    Ok(cells)
}

/// One cell measured on the hardened model, or on a model without a base.
struct Measured<'a> {
    cell: &'a Cell,
    adaptive: bool,
    fitted: Fitted,
    base: Option<Counts>,
    hardened: Counts,
}

/// Measures the hardened model: base-fitted edits carried over, edits fitted anew, controls.
///
/// Without `base` there is nothing to carry over and every edit is fitted on the hardened model; rows that are about the
/// difference from the base are left out.
///
/// # Errors
/// As [`measure_base`].
pub fn measure_hardened(
    grid: &Grid,
    bench: &Bench,
    base: Option<(Subject<'_>, &BaseCells)>,
    hardened: Subject<'_>,
    units: &Units<'_>,
    observer: &dyn Observer,
) -> Result<(Vec<AttackRow>, Vec<AttackRow>)> {
    if base.is_none() {
        grid.check_artefacts(hardened.decoder)?;
    }
    let range = Range { bench, units, base: base.map(|(base, _)| base) };
    let (stage, refitted) = if base.is_some() { ("attack hardened", "re-fitted asr") } else { ("attack model", "asr") };
    let progress = Progress::start(stage, grid.len(), observer);
    let of_base: Vec<Option<&(Fitted, Counts)>> = match base {
        Some((_, cells)) => cells.iter().map(Some).collect(),
        None => vec![None; grid.len()],
    };
    let cells: Vec<&Cell> = grid.cells().collect();
    let one = |number: &usize| {
        let (cell, base) = (cells[*number], of_base[*number]);
        let mut rows = vec![];
        let control = is_control(cell);
        if base.is_none() && needs_base(cell, hardened.decoder.blueprint())? {
            progress.finish(cell, "left out, the un-hardened base is not given");
            return Ok(rows);
        }
        // Neither a control nor an artefact depends on the model, so it is the same on both.
        let fixed = control || cell.spec.kind.method() == Method::Given;
        let mut found = vec![];
        if let Some((fitted, counts)) = base.filter(|_| fixed || cell.spec.knowledge.contains(&Knowledge::Frozen)) {
            let hardened = range.score(cell, hardened, fitted)?;
            found.push(format!("frozen asr {}", percent(hardened.success())));
            rows.push(Measured { cell, adaptive: false, fitted: fitted.clone(), base: Some(*counts), hardened });
        }
        let adaptive = !fixed && cell.spec.knowledge.contains(&Knowledge::Adaptive);
        if adaptive || (fixed && base.is_none()) {
            let fitted = range.fit(cell, hardened, Side::Hardened, base.map(|(fitted, _)| fitted))?;
            let counts = range.score(cell, hardened, &fitted)?;
            found.push(format!("{refitted} {}", percent(counts.success())));
            let fitted = match base {
                Some((before, _)) => beside_base(fitted, before),
                None => fitted,
            };
            rows.push(Measured { cell, adaptive, fitted, base: base.map(|(_, counts)| *counts), hardened: counts });
        }
        progress.finish(cell, &found.join(", "));
        Ok(rows)
    };
    let numbers: Vec<usize> = (0..cells.len()).collect();
    let (attacks, controls) = numbers.split_at(grid.attacks.len());
    let rows = |numbers| Ok::<_, Error>(rows(grid, each(hardened, numbers, one)?, bench));
    Ok((rows(attacks)?, rows(controls)?))
}

/// A choice beside that for the un-hardened model, whose success stands in the same row.
fn beside_base(mut fitted: Fitted, before: &Fitted) -> Fitted {
    fitted.at_edge |= before.at_edge;
    if !before.choice.is_empty() && before.choice != fitted.choice {
        fitted.choice = format!("{}; un-hardened: {}", fitted.choice, before.choice);
    }
    fitted
}

/// Runs cells side by side on the host, one after the other on an accelerator; results in the cells' order.
fn each<T: Sync, R: Send>(
    subject: Subject<'_>,
    cells: &[T],
    one: impl Fn(&T) -> Result<R> + Sync + Send,
) -> Result<Vec<R>> {
    if subject.decoder.device().is_cpu() {
        cells.par_iter().map(one).collect()
    } else {
        cells.iter().map(one).collect()
    }
}

/// Whether a cell is a random edit or none.
pub(super) fn is_control(cell: &Cell) -> bool {
    matches!(cell.spec.kind, AttackKind::Random | AttackKind::Identity)
}

/// Joins repetitions: a row of a report is one attack, place and knowledge.
fn rows(grid: &Grid, cells: Vec<Vec<Measured<'_>>>, bench: &Bench) -> Vec<AttackRow> {
    let mut groups: BTreeMap<(usize, &str, bool, &[usize]), Vec<&Measured<'_>>> = BTreeMap::new();
    for measured in cells.iter().flatten() {
        let cell = measured.cell;
        groups.entry((cell.row, &cell.name, measured.adaptive, &cell.layers)).or_default().push(measured);
    }
    groups.into_values().map(|group| row(grid, &group, bench)).collect()
}

fn row(grid: &Grid, group: &[&Measured<'_>], bench: &Bench) -> AttackRow {
    let (first, spec) = (group[0], &group[0].cell.spec);
    let control = is_control(first.cell);
    let learned = spec.form().is_some() || spec.kind == AttackKind::Lora;
    let pairs = match spec.kind {
        AttackKind::Identity | AttackKind::Random | AttackKind::Imported => 0,
        _ => spec.pairs.min(bench.attack.pairs.len()),
    };
    // The fewest of the repetitions, each of which may have chosen another opening.
    let searched = group.iter().filter_map(|measured| measured.fitted.pairs).min();
    // A control is placed as its attack is.
    let placed = first.cell.control_of.as_ref().map_or(spec, |attack| &attack.spec);
    let weights = first.fitted.weights.as_ref();
    let norms: Vec<f64> = group.iter().filter_map(|m| m.fitted.relative_norm).collect();
    let calibration = bench.calibration.as_ref();
    // What the most successful repetition took; the first of equals.
    let shown = group.iter().rev().max_by_key(|m| m.hardened.successes).map_or(&first.fitted, |most| &most.fitted);
    let place = if placed.acts_on_all() { String::new() } else { format!(" --block {}", ranges(&first.cell.layers)) };
    let at = match spec.positions {
        Positions::All if !grid.shared.contains(&first.cell.name) => String::new(),
        positions => format!(" --positions {}", positions_name(positions)),
    };
    AttackRow {
        name: first.cell.name.clone(),
        family: kind_name(spec.kind).into(),
        layers: first.fitted.layers.clone().unwrap_or_else(|| first.cell.layers.clone()),
        positions: positions_name(spec.positions).into(),
        adaptive: first.adaptive,
        attacker_has_base: first.base.is_some() && !control && uses_base(first),
        control,
        ungated: weights.is_some_and(Reweighting::is_out_of_scope),
        seeds: group.len() as u64,
        budget: Budget {
            pairs: searched.unwrap_or(pairs as u64),
            steps: if learned { steps(spec) as u64 } else { 0 },
            rank: match (spec.kind, spec.kind.method()) {
                (AttackKind::Random | AttackKind::SubspaceAblation | AttackKind::Lora, _) => spec.rank as u64,
                _ if spec.form().is_some() => spec.rank as u64,
                (_, Method::Learned(_) | Method::Mapped) => 1,
                (_, Method::Swept | Method::Projected | Method::Abliterated | Method::Weights) => 1,
                (_, Method::Control | Method::Given) => 0,
            },
            relative_norm: (!norms.is_empty()).then(|| norms.iter().sum::<f64>() / norms.len() as f64),
            gradient_evaluations: group.iter().map(|m| m.fitted.gradient_evaluations).sum(),
            search: shown.search.clone(),
            choice: shown.choice.clone(),
            at_edge: shown.at_edge,
        },
        bound: None,
        applicable: true,
        rates: Rates::Raw,
        // Weights that take the place of others have no un-hardened value.
        base: group
            .iter()
            .map(|m| m.base.filter(|_| !weights.is_some_and(Reweighting::replaces)))
            .collect::<Option<Vec<_>>>()
            .map(|counts| mean(&counts, calibration)),
        hardened: mean(&group.iter().map(|m| m.hardened).collect::<Vec<_>>(), calibration),
        repetitions: match group {
            [_] => vec![],
            several => several.iter().map(|m| m.hardened.outcome(calibration)).collect(),
        },
        agreement: group.iter().filter_map(|m| m.hardened.guarded).reduce(Agreement::plus),
        reproduce: format!("--only '{}'{place}{at}", first.cell.name.replace('\'', r"'\''")),
    }
}

/// Whether an attack's edit was fitted on the base, or could have been, or its weights are made with the base's.
fn uses_base(measured: &Measured<'_>) -> bool {
    let (spec, weights) = (&measured.cell.spec, measured.fitted.weights.as_ref());
    let candidate = spec.kind.method() != Method::Given && (!measured.adaptive || spec.tries_base());
    candidate || weights.is_some_and(Reweighting::needs_base)
}

/// Mean over repetitions on the same prompts, with the mean of the interval ends: no more certain than one of them.
fn mean(counts: &[Counts], calibration: Option<&Calibration>) -> Outcome {
    let outcomes: Vec<Outcome> = counts.iter().map(|counts| counts.outcome(calibration)).collect();
    let of = |f: fn(&Outcome) -> f64| outcomes.iter().map(f).sum::<f64>() / outcomes.len().max(1) as f64;
    Outcome {
        asr: of(|o| o.asr),
        refused: of(|o| o.refused),
        degenerate: of(|o| o.degenerate),
        n: outcomes.iter().map(|o| o.n).min().unwrap_or(0),
        low: of(|o| o.low),
        high: of(|o| o.high),
        corrected: calibration.map(|_| report::Measured {
            value: of(|o| o.by(Rates::Corrected).asr),
            n: outcomes.iter().map(|o| o.n).min().unwrap_or(0),
            low: of(|o| o.by(Rates::Corrected).low),
            high: of(|o| o.by(Rates::Corrected).high),
        }),
        effective_n: outcomes.iter().filter_map(|o| o.effective_n).reduce(f64::min),
    }
}

pub(super) fn positions_name(positions: Positions) -> &'static str {
    match positions {
        Positions::Prompt => "prompt",
        Positions::All => "all",
        Positions::Last => "last",
    }
}

/// For people, who need no word where an edit acts at all tokens.
pub(super) fn tokens(positions: Positions) -> &'static str {
    match positions {
        Positions::All => "",
        Positions::Prompt => ", prompt tokens",
        Positions::Last => ", from the prompt's last token on",
    }
}

/// Tells an observer about finished cells.
struct Progress<'a> {
    stage: &'a str,
    units: usize,
    done: AtomicUsize,
    observer: &'a dyn Observer,
}

impl<'a> Progress<'a> {
    fn start(stage: &'a str, units: usize, observer: &'a dyn Observer) -> Self {
        observer.event(Event::StageStarted { stage: stage.into(), units });
        Self { stage, units, done: AtomicUsize::new(0), observer }
    }

    fn finish(&self, cell: &Cell, found: &str) {
        let done = self.done.fetch_add(1, Ordering::SeqCst) + 1;
        let place = crate::report::wording::blocks(&cell.layers);
        let tokens = tokens(cell.spec.positions);
        let detail = format!("{} at {place}{tokens}: {found}", cell.name);
        self.observer.event(Event::UnitFinished { stage: self.stage.into(), done, units: self.units, detail });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Shard;

    fn suite(text: &str) -> Suite {
        Suite::parse(text, "suite.yaml".as_ref()).unwrap()
    }

    #[test]
    fn every_block_is_a_cell_and_ablation_is_one() {
        let suite = suite(
            "attacks: [{kind: noreft, layers: [0, 2]}, {kind: ablation}, {kind: random}, {kind: identity, layers: [0]}]",
        );
        let grid = Grid::new(&suite, 4).unwrap();
        let names: Vec<(&str, &[usize])> =
            grid.attacks.iter().map(|c| (c.name.as_str(), c.layers.as_slice())).collect();
        let all = [0, 1, 2, 3];
        assert_eq!(names, [("noreft r2 p80", &[0][..]), ("noreft r2 p80", &[2]), ("ablation p80 best of 4", &all)]);
        assert_eq!(grid.controls.len(), 1 + 4 + 1, "one like the ablation, one a block, and none at all");
    }

    #[test]
    fn a_learned_edit_of_another_size_than_the_random_row_has_a_control_of_its_own() {
        let suite = suite(
            "attacks: [{kind: noreft}, {kind: noreft, rank: 8, steps: 9}, {kind: noreft, positions: last}, {kind: random}]",
        );
        let grid = Grid::new(&suite, 1).unwrap();
        let names: Vec<(&str, Positions)> =
            grid.controls.iter().map(|cell| (cell.name.as_str(), cell.spec.positions)).collect();
        let [all, last] = [Positions::All, Positions::Last];
        let expected =
            [("random like noreft r8 p80 s9", all), ("random like noreft r2 p80", last), ("random r2 p80", all)];
        assert_eq!(names, expected);
        let without = Grid::new(&self::suite("attacks: [{kind: noreft, rank: 8}]"), 1).unwrap();
        assert!(without.controls.is_empty(), "none is asked for");
    }

    #[test]
    fn a_block_that_no_random_row_names_has_a_control_of_its_own() {
        let grid = Grid::new(&suite("attacks: [{kind: noreft}, {kind: random, layers: [0, 2]}]"), 3).unwrap();
        let places: Vec<(&str, &[usize])> =
            grid.controls.iter().map(|cell| (cell.name.as_str(), cell.layers.as_slice())).collect();
        let (row, own) = ("random r2 p80", "random like noreft r2 p80");
        assert_eq!(places, [(own, &[1][..]), (row, &[0]), (row, &[2])]);
    }

    #[test]
    fn a_suite_of_more_cells_than_anybody_measures_is_refused_by_row() {
        let rows = "attacks: [{kind: ablation}, {kind: noreft, seeds: 4000}, {kind: loreft, seeds: 3000}]";
        let error = Grid::new(&suite(rows), 2).unwrap_err();
        let told =
            "`suite.attacks.2.seeds`: expected at most 10000 cells in all, got 8001 before this row and 6000 of it";
        assert!(error.exit_code() == 2 && error.to_string().contains(told), "{error}");
        assert_eq!(Grid::new(&suite(rows), 1).unwrap().len(), 7001);
        for row in ["{kind: noreft, seeds: 10000000}", "{kind: noreft, search: {seeds: 10000000}}"] {
            let error = Suite::parse(&format!("attacks: [{row}]"), "suite.yaml".as_ref()).unwrap_err().to_string();
            assert!(error.contains("seeds: expected at most 10000, got 10000000"), "{error}");
        }
    }

    #[test]
    fn rows_of_other_settings_have_other_names() {
        let suite = suite(
            "attacks: [{kind: noreft}, {kind: noreft, search: {}}, {kind: noreft, steps: 9}, {kind: noreft, positions: prompt},
              {kind: noreft, batch: 10}]",
        );
        let grid = Grid::new(&suite, 1).unwrap();
        let names: Vec<&str> = grid.attacks.iter().map(|cell| cell.name.as_str()).collect();
        assert_eq!(
            names,
            ["noreft r2 p80", "noreft r2 p80 search", "noreft r2 p80 s9", "noreft r2 p80", "noreft r2 p80 #2"]
        );
    }

    #[test]
    fn shards_part_the_grid() {
        let suite = suite("attacks: [{kind: noreft}, {kind: ablation}, {kind: random}]");
        let whole = Grid::new(&suite, 5).unwrap();
        let parts: Vec<usize> = (1..=3)
            .map(|index| {
                let shard = Some(Shard { index, count: 3 });
                whole.clone().select(&Selection { shard, ..Selection::default() }, true).len()
            })
            .collect();
        assert_eq!(parts.iter().sum::<usize>(), whole.len());
        assert!(parts.iter().all(|part| *part > 0));
    }

    #[test]
    fn a_shard_has_all_repetitions_of_a_row_and_its_control() {
        let suite =
            suite("attacks: [{kind: noreft, seeds: 3}, {kind: mean-difference, coefficients: [1]}, {kind: random}]");
        let whole = Grid::new(&suite, 4).unwrap();
        for index in 1..=3 {
            let shard = Some(Shard { index, count: 3 });
            let part = whole.clone().select(&Selection { shard, ..Selection::default() }, true);
            for cell in &part.attacks {
                let like = |other: &&Cell| other.row == cell.row && other.layers == cell.layers;
                let [all, here] = [&whole, &part].map(|grid| grid.attacks.iter().filter(like).count());
                assert_eq!(all, here, "{} at {:?}", cell.name, cell.layers);
            }
            for control in &part.controls {
                let attack = control.control_of.as_ref().unwrap();
                let has =
                    |grid: &Grid| grid.attacks.iter().any(|c| c.name == attack.name && c.layers == control.layers);
                assert_eq!(has(&whole), has(&part), "{} at {:?}", control.name, control.layers);
            }
        }
    }

    #[test]
    fn repetitions_are_no_more_certain_than_one() {
        let counts = |k| Counts { successes: k, refused: 100 - k, degenerate: 0, open: k, n: 100, ..Counts::default() };
        let one = mean(&[counts(20)], None);
        let three = mean(&[counts(20), counts(20), counts(20)], None);
        assert!((three.high - one.high).abs() < 1e-12 && three.n == 100);
        assert!((mean(&[counts(10), counts(30)], None).asr - 0.2).abs() < 1e-12);
    }
}
