//! What the cells of a suite cost at most, and which of them its budget pays for.
//!
//! Costs follow from the suite alone: no clock, answer, resumed cell or other part of a sharded measurement changes them, so what is
//! left out is the same everywhere and can be said before anything is measured. In exchange they are upper bounds: a search
//! that stops early and a cell that is decided early spend less, and what they leave buys nothing.
//!
//! Rows are paid for in the suite's order, whole groups at a time ([`Grid`]): what does not fit into the rest is skipped and later,
//! cheaper ones may still fit. A skipped row is a finding that keeps the verdict from being a pass.

use std::collections::BTreeSet;
use std::iter::Sum;
use std::ops::Add;

use serde::Serialize;

use super::bench::Side;
use super::cell::{Cell, settings_on, steps};
use super::suite::{Grid, is_control, tokens};
use crate::attack::spec::{Allowance, AttackKind, Knowledge, Method};
use crate::recipe::Suite;
use crate::report::wording::{at_most, blocks};

/// What measuring takes at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Cost {
    /// Sequences run forward and backward to find edits, on both models.
    pub gradient_evaluations: u64,
    /// Tokens of the answers that are scored, on both models; what a search or sweep asks for on validation prompts is not
    /// among them.
    pub generated_tokens: u64,
}

impl Cost {
    /// Whether it is within an allowance.
    #[must_use]
    pub fn within(&self, allowance: &Allowance) -> bool {
        let fits = |cost: u64, most: Option<u64>| most.is_none_or(|most| cost <= most);
        fits(self.gradient_evaluations, allowance.gradient_evaluations)
            && fits(self.generated_tokens, allowance.generated_tokens)
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            gradient_evaluations: self.gradient_evaluations.saturating_add(other.gradient_evaluations),
            generated_tokens: self.generated_tokens.saturating_add(other.generated_tokens),
        }
    }
}

impl Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(costs: I) -> Self {
        costs.fold(Self::default(), Add::add)
    }
}

/// What a suite grants, and how long its answers are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terms {
    /// For all cells together; absent: as much as it takes.
    pub budget: Option<Allowance>,
    /// Tokens of the answers to all evaluation prompts, at most.
    answers: u64,
}

impl Terms {
    /// Those of `suite`.
    #[must_use]
    pub fn of(suite: &Suite) -> Self {
        Self {
            budget: suite.budget,
            answers: (suite.evaluation_prompts as u64).saturating_mul(suite.max_new_tokens as u64),
        }
    }

    /// What `cell` takes; fits that are in `known` are there already, and its own are added.
    fn cost(&self, cell: &Cell, with_base: bool, known: &mut BTreeSet<String>) -> Cost {
        let spec = &cell.spec;
        let of = cell.control_of.as_deref().unwrap_or(cell);
        if !with_base && of.spec.kind == AttackKind::DeltaStrip {
            return Cost::default();
        }
        let control = is_control(cell);
        let fixed = control || spec.kind.method() == Method::Given;
        let adaptive = (!fixed && spec.knowledge.contains(&Knowledge::Adaptive)) || (fixed && !with_base);
        let frozen = with_base && (fixed || spec.knowledge.contains(&Knowledge::Frozen));
        let scored = u64::from(with_base) + u64::from(frozen) + u64::from(adaptive);
        if of.spec.kind == AttackKind::Lora {
            // Its weights are not kept: it trains where it is fitted and again wherever it is scored, and so does its control.
            let trained = u64::from(with_base) + u64::from(adaptive) + scored;
            return Cost {
                gradient_evaluations: (steps(&of.spec) as u64)
                    .saturating_mul(of.spec.batch as u64)
                    .saturating_mul(trained),
                generated_tokens: self.answers.saturating_mul(scored),
            };
        }
        // A control takes the size of its attack's edit, so that is what is fitted.
        let mut fit = |side: Side| if known.insert(fit_of(of, side)) { gradients(of, side, with_base) } else { 0 };
        let base = if with_base { fit(Side::Base) } else { 0 };
        let hardened = if adaptive { fit(Side::Hardened) } else { 0 };
        Cost {
            gradient_evaluations: base.saturating_add(hardened),
            generated_tokens: self.answers.saturating_mul(scored),
        }
    }
}

/// What tells a fit from others: all that its unit is kept by and the suite says, so that what is not shared is not free.
fn fit_of(cell: &Cell, side: Side) -> String {
    let what = (settings_on(&cell.spec, side), &cell.layers, cell.seed, side.word());
    serde_json::to_string(&what).expect("plain data with string keys: cannot fail")
}

/// Sequences forward and backward of one fit.
fn gradients(cell: &Cell, side: Side, with_base: bool) -> u64 {
    let spec = settings_on(&cell.spec, side);
    let once = (steps(&spec) as u64).saturating_mul(spec.batch as u64);
    let fits = match (spec.kind.method(), &spec.search) {
        (Method::Learned(_), Some(search)) => {
            let starts = if search.start_from_base && with_base { 2 } else { 1 };
            search.learning_rates.len() * starts * (1 + search.openings.len()) * search.seeds
        }
        (Method::Learned(_), None) => 1,
        // One on the source model for every block.
        (Method::Mapped, _) if spec.form().is_some() => cell.layers.len(),
        _ => 0,
    };
    once.saturating_mul(fits as u64)
}

/// What one group of cells costs, and whether it is paid for.
#[derive(Debug, Clone, Copy)]
pub struct Bill<'a> {
    /// Its first cell, which names it.
    pub cell: &'a Cell,
    /// Number of the group.
    pub group: usize,
    /// All its cells, after those that are paid for before it; where the row's own budget is too small: by itself.
    pub cost: Cost,
    /// Whether it fits into the suite's budget after those before it, and each of its cells by itself into its row's.
    pub paid: bool,
}

/// The bills of the groups of `cells`, each with the number of its group, in order of those numbers.
#[must_use]
pub fn bills<'a>(terms: &Terms, cells: &[(usize, &'a Cell)], with_base: bool) -> Vec<Bill<'a>> {
    let mut ordered = cells.to_vec();
    // Attacks stand before controls in every group, and the sort keeps that.
    ordered.sort_by_key(|(group, _)| *group);
    let (mut known, mut spent, mut bills) = (BTreeSet::new(), Cost::default(), vec![]);
    for group in ordered.chunk_by(|a, b| a.0 == b.0) {
        // A row's own budget is for the row chosen alone, too: no fit of another one counts as done.
        let alone = |cell: &Cell| terms.cost(cell, with_base, &mut BTreeSet::new());
        let each = group.iter().all(|(_, cell)| cell.spec.budget.is_none_or(|budget| alone(cell).within(&budget)));
        let mut learnt = if each { known.clone() } else { BTreeSet::new() };
        let cost = group.iter().map(|(_, cell)| terms.cost(cell, with_base, &mut learnt)).sum();
        let paid = each && terms.budget.is_none_or(|budget| (spent + cost).within(&budget));
        if paid {
            (known, spent) = (learnt, spent + cost);
        }
        bills.push(Bill { cell: group[0].1, group: group[0].0, cost, paid });
    }
    bills
}

fn words(cost: &Cost) -> String {
    at_most(cost.gradient_evaluations, cost.generated_tokens)
}

/// The costs of a grid in words, a line for every group and one for all; nothing where no budget is set.
#[must_use]
pub fn told(grid: &Grid, with_base: bool) -> Vec<String> {
    let bills = grid.bills(with_base);
    let bounded = grid.terms.budget.is_some() || bills.iter().any(|bill| bill.cell.spec.budget.is_some());
    if !bounded {
        return vec![];
    }
    let place = |cell: &Cell| blocks(&cell.layers);
    let line = |bill: &Bill<'_>| {
        let what = if bill.paid { String::new() } else { ", skipped: budget".into() };
        let tokens = tokens(bill.cell.spec.positions);
        format!("{} at {}{tokens}: {}{what}", bill.cell.name, place(bill.cell), words(&bill.cost))
    };
    let spent: Cost = bills.iter().filter(|bill| bill.paid).map(|bill| bill.cost).sum();
    let granted =
        grid.terms.budget.map_or_else(|| "no bound for all together".into(), |budget| format!("of {}", budget.words()));
    let mut lines: Vec<String> = bills.iter().map(line).collect();
    lines.push(format!("all that fit: {}, {granted}", words(&spent)));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::suite::Selection;
    use crate::report::Shard;

    const ROWS: &str = "evaluation_prompts: 10\nmax_new_tokens: 4\nattacks:\n\
        - {kind: noreft, steps: 10, batch: 5, layers: [0, 1]}\n\
        - {kind: noreft, steps: 10, batch: 5, layers: [0], search: {learning_rates: [0.1, 0.2], seeds: 3}}\n\
        - {kind: ablation}\n\
        - {kind: random, steps: 10, batch: 5, layers: [0, 1]}\n\
        - {kind: identity, layers: [0]}\n";

    fn grid(budget: &str) -> Grid {
        let suite = Suite::parse(&format!("{budget}{ROWS}"), "suite.yaml".as_ref()).unwrap();
        Grid::new(&suite, 2).unwrap()
    }

    fn names(grid: &Grid) -> Vec<(String, Vec<usize>)> {
        grid.attacks.iter().chain(&grid.controls).map(|cell| (cell.name.clone(), cell.layers.clone())).collect()
    }

    #[test]
    fn costs_follow_from_the_settings() {
        let grid = grid("");
        let cost = |with_base: bool| -> Vec<(u64, u64)> {
            let pair = |bill: &Bill<'_>| (bill.cost.gradient_evaluations, bill.cost.generated_tokens);
            grid.bills(with_base).iter().map(pair).collect()
        };
        // 50 a fit, 40 tokens a scoring. The searched row shares its fit on the base with the first and is scored as re-fitted
        // alone, and a random row has its size from there; controls go with their attack.
        let learned = (100, 3 * 40 + 2 * 40);
        let searched = (2 * 2 * 3 * 50, 2 * 40);
        assert_eq!(cost(true), [learned, learned, searched, (0, 3 * 40 + 2 * 40), (0, 80)]);
        let alone = (50, 40 + 40);
        assert_eq!(cost(false), [alone, alone, (2 * 3 * 50, 40), (0, 80), (0, 40)]);
    }

    #[test]
    fn only_a_fit_of_the_very_same_settings_is_free() {
        const ROW: &str = "kind: noreft, steps: 10, batch: 5, layers: [0]";
        const NARROW: &str = ", search: {learning_rates: [0.1], start_from_base: false, seeds: 1}";
        const WIDE: &str = ", search: {learning_rates: [0.1, 0.2], start_from_base: false, seeds: 1}";
        let gradients = |rows: &[&str], with_base: bool| -> Vec<u64> {
            let rows: Vec<String> = rows.iter().map(|more| format!("{{{ROW}{more}}}")).collect();
            let suite = Suite::parse(&format!("attacks: [{}]", rows.join(", ")), "suite.yaml".as_ref()).unwrap();
            let grid = Grid::new(&suite, 2).unwrap();
            grid.bills(with_base).iter().map(|bill| bill.cost.gradient_evaluations).collect()
        };
        assert_eq!(gradients(&["", ""], true), [100, 0]);
        assert_eq!(gradients(&["", ", positions: last"], true), [100, 100]);
        assert_eq!(gradients(&[NARROW, WIDE, NARROW], true), [100, 100, 0], "the base is not searched");
        assert_eq!(gradients(&[NARROW, WIDE, NARROW], false), [50, 100, 0]);
        // Its control has to be fitted where the row itself is not measured.
        let frozen = ", joint: true, knowledge: [frozen]}, {kind: random, layers: [1], pairs: 1, steps: 1, batch: 1";
        assert_eq!(gradients(&[frozen], false), [50, 1]);
    }

    #[test]
    fn a_tuned_model_is_paid_for_as_often_as_it_is_trained() {
        let row = "kind: lora, steps: 10, batch: 5";
        let suite = Suite::parse(&format!("attacks: [{{{row}}}, {{{row}}}]"), "suite.yaml".as_ref()).unwrap();
        let bills = |with_base| -> Vec<u64> {
            let grid = Grid::new(&suite, 2).unwrap();
            grid.bills(with_base).iter().map(|bill| bill.cost.gradient_evaluations).collect()
        };
        // The row: a fit and a scoring on either model. Its control: a fit on the base, and a scoring on either.
        assert_eq!(bills(true), [50 * (4 + 3), 50 * (4 + 3)], "nothing that is trained is kept for the second row");
        assert_eq!(bills(false), [50 * (2 + 2), 50 * (2 + 2)]);
    }

    #[test]
    fn what_does_not_fit_is_skipped_and_what_is_cheaper_still_fits() {
        let all = Selection::default();
        let whole = grid("").select(&all, true);
        let part = grid("budget: {gradient_evaluations: 200}\n").select(&all, true);
        assert_eq!((whole.skipped.len(), part.len() + part.skipped.len()), (0, whole.len()));
        assert_eq!(
            part.skipped.iter().map(|(cell, _)| cell.name.as_str()).collect::<Vec<_>>(),
            ["noreft r2 p80 s10 b5 search"]
        );
        let nothing = grid("budget: {gradient_evaluations: 1, generated_tokens: 80}\n").select(&all, true);
        assert_eq!(nothing.len(), 1, "one control of the last rows: {:?}", names(&nothing));
        assert!(
            told(&grid("budget: {gradient_evaluations: 200}\n"), true)
                .iter()
                .any(|line| line.ends_with("skipped: budget"))
        );
        assert!(told(&grid(""), true).is_empty());
    }

    #[test]
    fn shards_skip_what_the_whole_skips() {
        let budget = "budget: {gradient_evaluations: 150, generated_tokens: 700}\n";
        let whole = grid(budget).select(&Selection::default(), true);
        let parts: Vec<Grid> = (1..=3)
            .map(|index| {
                let shard = Some(Shard { index, count: 3 });
                grid(budget).select(&Selection { shard, ..Selection::default() }, true)
            })
            .collect();
        let sorted = |mut cells: Vec<(String, Vec<usize>)>| {
            cells.sort();
            cells
        };
        assert_eq!(sorted(parts.iter().flat_map(names).collect()), sorted(names(&whole)));
        assert_eq!(parts.iter().map(|part| part.skipped.len()).sum::<usize>(), whole.skipped.len());
        assert!(!whole.skipped.is_empty() && !whole.is_empty());
    }

    #[test]
    fn a_row_has_a_bound_of_its_own() {
        let suite = "attacks: [{kind: noreft, steps: 10, batch: 5, layers: [0], budget: {gradient_evaluations: 99}}, {kind: ablation}]";
        let grid = Grid::new(&Suite::parse(suite, "suite.yaml".as_ref()).unwrap(), 2).unwrap();
        let part = grid.select(&Selection::default(), true);
        assert_eq!((part.skipped.len(), part.attacks.len()), (1, 1));
    }

    #[test]
    fn a_row_is_skipped_for_its_own_budget_wherever_it_stands() {
        const ROW: &str = "kind: noreft, steps: 10, batch: 5, layers: [0]";
        let select = |budget: u64, names: &[&str]| {
            let searched = "search: {learning_rates: [0.1], start_from_base: false, seeds: 1}";
            let rows = format!("[{{{ROW}}}, {{{ROW}, {searched}, budget: {{gradient_evaluations: {budget}}}}}]");
            let suite = Suite::parse(&format!("attacks: {rows}"), "suite.yaml".as_ref()).unwrap();
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            let grid = Grid::new(&suite, 2).unwrap().select(&Selection { names, ..Selection::default() }, true);
            grid.skipped.iter().map(|(_, cost)| cost.gradient_evaluations).collect::<Vec<_>>()
        };
        // 50 on either side; the row before it has the one on the base, which its own command has to repeat.
        for names in [&[][..], &["noreft r2 p80 s10 b5 search"]] {
            assert_eq!(select(99, names), [100], "{names:?}");
            assert!(select(100, names).is_empty(), "{names:?}");
        }
    }
}
