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
    // A report without a base has no weights to count blocks of, and no row that a pass could rest on.
    let n_layers = report.hardened.delta.blocks.len();
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
    // An artefact says itself where it acts.
    let given = cell.spec.kind.method() == Method::Given;
    let here = |name: &str, at: &str, layers: &[usize]| {
        name == cell.name && at == positions && (given || layers == cell.layers)
    };
    if report.skipped.iter().any(|row| here(&row.name, &row.positions, &row.layers)) {
        return None;
    }
    let has = |rows: &[AttackRow], adaptive: Option<bool>| {
        rows.iter()
            .any(|row| here(&row.name, &row.positions, &row.layers) && adaptive.is_none_or(|a| row.adaptive == a))
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
