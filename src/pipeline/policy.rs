//! A joined report, held against the recipe that decides about it.

use super::cell::Cell;
use super::suite::{Grid, is_control, positions_name};
use super::verify::imported;
use crate::attack::spec::{Knowledge, Method};
use crate::recipe::Recipe;
use crate::report::wording::blocks;
use crate::report::{AttackRow, Report};
use crate::utility::spec::Task;
use crate::{Error, Result};

/// Concludes `report` by `policy`: its thresholds, and its bounds for utility in place of those that the rows came with.
///
/// # Errors
/// [`Error::Input`] naming a task or an attack of the policy that no row is about, or a task file that is another one than was
/// measured; those of [`imported`] and [`Grid::new`].
pub fn conclude(report: &mut Report, policy: &Recipe) -> Result<()> {
    bound(report, policy)?;
    let n_layers = report.hardened.delta.blocks.len();
    if n_layers == 0 && report.attacks.iter().any(|row| row.base.is_some()) {
        let problem =
            "`hardened.delta.blocks`: expected the blocks of a model that was measured beside its base, got none";
        return Err(Error::input("report", problem));
    }
    // Without a base nobody knows how many blocks there are, and no row counts, so nothing passes.
    if n_layers > 0 {
        let grid = Grid::new(&policy.suite, n_layers)?;
        if let Some(missing) = grid.attacks.iter().chain(&grid.controls).find_map(|cell| lacking(report, cell)) {
            let text = format!("the parts have no row of {missing}, which the policy has under `suite.attacks`");
            let hint =
                "give all parts of one measurement by this policy, none of them narrowed with `--only` or `--block`";
            return Err(Error::input("report", text).hint(hint));
        }
    }
    report.conclude(&policy.thresholds);
    Ok(())
}

/// Gives the rows of utility the bounds that the policy has for them.
fn bound(report: &mut Report, policy: &Recipe) -> Result<()> {
    let mut wanted: Vec<(String, Option<f64>, Option<String>)> = vec![];
    let files = imported(&policy.utility)?;
    let mut files = files.iter();
    for spec in &policy.utility {
        match spec.task {
            Task::Imported => {
                for file in files.by_ref().take(1) {
                    wanted
                        .extend(file.bounds().into_iter().map(|(row, bound)| (row, bound, Some(file.digest().into()))));
                }
            }
            task => wanted.push((task.name().into(), spec.bound, None)),
        }
    }
    for row in &mut report.utility {
        row.bound = None;
    }
    for (task, bound, digest) in wanted {
        let Some(row) = report.utility.iter_mut().find(|row| row.task == task) else {
            let text = format!("the parts have no row of `{task}`, which the policy has under `utility`");
            return Err(Error::input("report", text)
                .hint("`immunise verify --policy` measures it, `immunise attack` doesn't; or `--set utility=[]`"));
        };
        if digest.is_some() && row.digest != digest {
            let text = format!("the parts have `{task}` of another task file or other data than the policy");
            return Err(Error::input("report", text).hint("measure the parts by this policy"));
        }
        row.bound = bound;
    }
    Ok(())
}

/// What of `cell` the report neither has nor says that no budget was left for, in words.
fn lacking(report: &Report, cell: &Cell) -> Option<String> {
    let positions = positions_name(cell.spec.positions);
    // An artefact says itself where it acts, and its control acts there too.
    let method = |cell: &Cell| cell.spec.kind.method();
    let given = method(cell.control_of.as_deref().unwrap_or(cell)) == Method::Given;
    let here = |name: &str, at: &str, layers: &[usize]| {
        name == cell.name && at == positions && (given || layers == cell.layers)
    };
    if report.skipped.iter().any(|row| here(&row.name, &row.positions, &row.layers)) {
        return None;
    }
    // The control of an attack is drawn once.
    let seeds = if is_control(cell) { 1 } else { cell.spec.seeds as u64 };
    let has = |rows: &[AttackRow], adaptive: Option<bool>| {
        let mut here = rows.iter().filter(|row| here(&row.name, &row.positions, &row.layers) && row.seeds >= seeds);
        here.any(|row| adaptive.is_none_or(|adaptive| row.adaptive == adaptive))
    };
    let place = format!("`{}` at {}, {positions} tokens", cell.name, blocks(&cell.layers));
    if is_control(cell) || given {
        let rows = if is_control(cell) { &report.controls } else { &report.attacks };
        return (!has(rows, None)).then_some(place);
    }
    let knowledge = [(Knowledge::Frozen, false, "frozen"), (Knowledge::Adaptive, true, "re-fitted")];
    knowledge.into_iter().find_map(|(one, adaptive, word)| {
        let wanted = cell.spec.knowledge.contains(&one) && !has(&report.attacks, Some(adaptive));
        wanted.then(|| format!("{place}, {word}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Suite;

    fn report() -> Report {
        Report::from_json(include_str!("../../docs/reports/smollm2-one-block.json"), "report.json").unwrap()
    }

    fn grid(rows: &str) -> Grid {
        Grid::new(&Suite::parse(&format!("attacks: [{rows}]"), "suite.yaml".as_ref()).unwrap(), 30).unwrap()
    }

    #[test]
    fn an_artefact_and_its_control_are_found_where_the_artefact_acts() {
        let grid = grid("{kind: imported, file: v.gguf, knowledge: [frozen]}, {kind: random}");
        let (attack, control) = (&grid.attacks[0], &grid.controls[0]);
        assert!(control.name.starts_with("random like imported") && control.layers.len() == 30);
        let mut report = report();
        assert!(lacking(&report, attack).is_some() && lacking(&report, control).is_some());
        (report.attacks[0].name, report.attacks[0].layers) = (attack.name.clone(), vec![3]);
        (report.controls[0].name, report.controls[0].layers) = (control.name.clone(), vec![3]);
        assert_eq!((lacking(&report, attack), lacking(&report, control)), (None, None));
    }

    #[test]
    fn a_row_of_fewer_repetitions_is_another_measurement() {
        let mut report = report();
        let row = &mut report.attacks[0];
        (row.name, row.layers, row.positions, row.adaptive) = ("noreft r2 p80".into(), vec![3], "all".into(), true);
        let asked =
            |seeds: usize| grid(&format!("{{kind: noreft, layers: [3], seeds: {seeds}, knowledge: [adaptive]}}"));
        assert_eq!(lacking(&report, &asked(1).attacks[0]), None);
        let lacking = lacking(&report, &asked(3).attacks[0]).unwrap();
        assert_eq!(lacking, "`noreft r2 p80` at block 3, all tokens, re-fitted");
    }

    #[test]
    fn a_report_beside_a_base_has_blocks() {
        let mut report = report();
        report.hardened.delta.blocks.clear();
        let error = conclude(&mut report, &Recipe::embedded("demo").unwrap().with_overrides(&["utility=[]"]).unwrap());
        assert!(error.unwrap_err().to_string().contains("hardened.delta.blocks"));
    }
}
