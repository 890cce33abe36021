//! What a run would do, without doing it: stages, cells, what is measured, memory and disk.

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::Device;
use serde::Serialize;

use super::budget;
use super::corpus::{Corpus, prompts_of};
use super::device::{Activations, Demand, Machine, Placement, Residency, Shelf};
use super::harden::{check_match, check_targets, locate_for, stage_layers};
use super::needs::{check_cells, check_evaluation, check_guard, check_sources};
use super::suite::{Grid, Selection, tokens};
use super::verify::{imported, row_names};
use super::window::Window;
use crate::Result;
use crate::attack::spec::Knowledge;
use crate::checkpoint::Checkpoint;
use crate::data::{Kind, PromptSet, Split};
use crate::defence::spec::Parameters;
use crate::event::Observer;
use crate::model::prompt::PromptEncoder;
use crate::model::{Blueprint, Decoder, Module, families};
use crate::recipe::{Recipe, Stage};
use crate::report::Pairs;
use crate::report::wording::{blocks, ranges};
use crate::utility::spec::TaskSpec;

/// What a run would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The model, and its family and size.
    pub model: String,
    /// The prompts and their digest.
    pub data: String,
    /// Defence stages, in order.
    pub stages: Vec<String>,
    /// Attack rows, each with its blocks and what it is fitted on.
    pub attacks: Vec<String>,
    /// Attack and control cells that are measured.
    pub cells: usize,
    /// What each row costs at a place, and what the suite's budget leaves out; empty without a budget.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub budget: Vec<String>,
    /// What is measured without an attack.
    pub measured: Vec<String>,
    /// What the data cannot give.
    pub shortages: Vec<String>,
    /// Where the weights are while the run works.
    pub weights: String,
    /// What training passes keep.
    pub activations: String,
    /// How many blocks are trained at once, and where what they come back to lies; absent without stages that train each apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apart: Option<String>,
    /// Memory that is needed, bytes, roughly.
    pub memory_bytes: u64,
    /// Memory that may be taken, bytes; absent where there is no limit.
    pub memory_allowed: Option<u64>,
    /// Disk that is needed for the output, bytes.
    pub disk_bytes: u64,
    /// Disk that the run folder takes while stages are trained, bytes, roughly.
    pub run_bytes: u64,
}

/// Plans a run of `recipe`; nothing but headers, norms, tokenizers, prompts, task files and attack artefacts is read, of the models beside
/// the one that is hardened too. What only a measurement needs is looked at where the run `measures`; a part of a sharded training
/// does not.
///
/// # Errors
/// As the run itself would, for everything that can be told by now.
pub fn plan(
    recipe: &Recipe,
    model: Option<&str>,
    machine: &Machine,
    measures: bool,
    observer: &dyn Observer,
) -> Result<Plan> {
    let located = locate_for(recipe, model, observer)?;
    let checkpoint = Arc::new(Checkpoint::open(&located.dir)?);
    // Names and shapes of all tensors, and the tokenizer.
    let decoder = Decoder::stream(&checkpoint, &Device::Cpu)?;
    let encoder = PromptEncoder::open(&located.dir)?;
    let blueprint = families::blueprint(checkpoint.config())?;
    check_match(recipe, &checkpoint.config().model_type, blueprint.parameters())?;
    let data = prompts_of(&recipe.data)?;
    check_targets(&recipe.stages, &recipe.suite, &data)?;
    let own_requests = match recipe.data.own_requests {
        0 => String::new(),
        most => {
            encoder.before_request(recipe.data.system.as_deref())?;
            format!(", up to {most} anchors that the model makes up")
        }
    };
    let stages = stage_layers(recipe, blueprint.n_layers)?;
    let grid = Grid::new(&recipe.suite, blueprint.n_layers)?;
    grid.check_artefacts(&decoder)?;
    let tasks = imported(&recipe.utility)?;
    tasks.iter().try_for_each(|task| task.check(&encoder, blueprint.positions()))?;
    let chosen = grid.clone().select(&Selection::default(), true);
    let corpus = Corpus { set: &data, encoder: &encoder, system: recipe.data.system.as_deref(), seed: recipe.seed };
    let window = Window::new(&corpus, &blueprint)?;
    window.check_stages(&recipe.stages)?;
    if measures {
        check_evaluation(&data)?;
        check_cells(&chosen, &data, true)?;
        window.check_measured(&recipe.suite, &chosen, &recipe.utility, true)?;
        check_sources(&recipe.suite, &chosen, &corpus, observer)?;
        recipe.suite.guard.iter().try_for_each(|guard| check_guard(guard, observer))?;
    }
    let disk = checkpoint.files()?.into_iter().filter_map(|file| std::fs::metadata(located.dir.join(file)).ok());
    let length = |file: &str| std::fs::metadata(located.dir.join(file)).ok().map(|metadata| metadata.len());
    let placement = machine.place(&blueprint, Demand::of_hardening(recipe, &data, &machine.device));
    let prompts = data.select(Split::Evaluation, Kind::Hazard).len().min(recipe.suite.evaluation_prompts);
    Ok(Plan {
        model: format!(
            "{} ({}, {} parameters, {} blocks)",
            located.source,
            blueprint.family,
            blueprint.parameters(),
            blueprint.n_layers
        ),
        data: format!("{} (sha256 {}), {prompts} hazards a cell{own_requests}", data.name, data.digest),
        stages: recipe.stages.iter().zip(&stages).map(|(s, l)| format!("{} on {}", s.kind(), blocks(l))).collect(),
        attacks: attacks(&grid),
        budget: budget::told(&grid, true),
        cells: chosen.len(),
        measured: ["hazards refused", "benign twins refused", "degenerate answers"]
            .into_iter()
            .map(str::to_owned)
            .chain(row_names(&recipe.utility, &tasks))
            .collect(),
        shortages: shortages(recipe, &data, &grid).into_iter().chain(window.cut(&recipe.suite)?).collect(),
        memory_bytes: placement.bytes,
        memory_allowed: (machine.memory < u64::MAX).then_some(machine.memory),
        activations: match placement.activations {
            Activations::Kept => "kept for the backward pass".into(),
            Activations::Recomputed => {
                "computed again in the backward pass, but for the blocks' inputs: all of them do not fit".into()
            }
        },
        weights: match placement.weights {
            Residency::Held => "in memory, f32".into(),
            Residency::Stored => {
                let size: u64 = checkpoint.weight_files().filter_map(length).sum();
                format!(
                    "stay in the files ({} GiB) and are read at every use: f32 in memory they do not fit",
                    gib(size)
                )
            }
        },
        apart: (placement.cached > 0).then(|| apart(&placement)),
        disk_bytes: disk.map(|metadata| metadata.len()).sum(),
        run_bytes: recipe.stages.iter().zip(&stages).map(|(s, l)| kept_bytes(s, l.len(), &blueprint)).sum::<u64>()
            + if placement.cache == Shelf::Disk { placement.cached } else { 0 },
    })
}

/// How stages that train each block apart use the machine.
fn apart(placement: &Placement) -> String {
    let blocks = match placement.blocks {
        1 => "one block at a time".into(),
        blocks => format!("up to {blocks} blocks at once"),
    };
    let place = match placement.cache {
        Shelf::Device => "in memory",
        Shelf::Host => "in the host's memory",
        Shelf::Disk if placement.blocks == 1 => "in the run folder: in memory they do not fit",
        Shelf::Disk => "in the run folder: with them in memory fewer blocks fit",
    };
    format!("{blocks}, their inputs and targets ({} MiB) {place}", placement.cached.div_ceil(1 << 20))
}

/// Bytes that a stage on so many blocks keeps: its adapters, and what a joint one goes on from, the old state until the new
/// one is whole.
fn kept_bytes(stage: &Stage, blocks: usize, blueprint: &Blueprint) -> u64 {
    // The variables and two moments, twice.
    const STATE: usize = 2 * 3;
    let numbers = |rank: Option<usize>| -> usize {
        let of = |[rows, cols]: [usize; 2]| match rank {
            None => rows * cols,
            Some(0) => rows.min(cols) * (rows + cols),
            Some(rank) => rank.min(rows).min(cols) * (rows + cols),
        };
        Module::ALL.into_iter().map(|module| of(blueprint.weight_shape(module))).sum::<usize>() * blocks
    };
    let kept = match stage {
        Stage::Et(spec, _) | Stage::EtFaithful(spec, _) => numbers(Some(spec.rank)),
        Stage::EtClosed(spec, _) | Stage::EtPropagated(spec, _) => numbers(Some(spec.rank)),
        Stage::HdrTaskvec(..) | Stage::HdrTopk(..) => numbers(None),
        Stage::Adversarial(spec, _) => {
            let trained = numbers((spec.train == Parameters::Factors).then_some(spec.rank));
            // An average is kept whole, in the state and as what the stage ends with.
            if spec.average > 0.0 { STATE * trained + 3 * numbers(None) } else { (1 + STATE) * trained }
        }
    };
    (kept * size_of::<f32>()) as u64
}

fn attacks(grid: &Grid) -> Vec<String> {
    let mut rows: Vec<(usize, String, Vec<usize>, String)> = vec![];
    for cell in grid.attacks.iter().chain(&grid.controls) {
        match rows.iter_mut().find(|row| row.0 == cell.row && row.1 == cell.name) {
            Some(row) => row.2.extend(&cell.layers),
            None => {
                let fitted = if cell.control_of.is_some() || cell.name == "identity" {
                    "control".to_owned()
                } else {
                    let words = cell.spec.knowledge.iter().map(|knowledge| match knowledge {
                        Knowledge::Frozen => "frozen",
                        Knowledge::Adaptive => "re-fitted",
                    });
                    words.collect::<Vec<_>>().join(" and ")
                };
                let fitted = fitted + tokens(cell.spec.positions);
                rows.push((cell.row, cell.name.clone(), cell.layers.clone(), fitted));
            }
        }
    }
    rows.into_iter()
        .map(|(_, name, mut layers, fitted)| {
            layers.sort_unstable();
            layers.dedup();
            format!(
                "{name} at {} ({fitted})",
                if layers.len() == 1 { blocks(&layers) } else { format!("blocks {}", ranges(&layers)) }
            )
        })
        .collect()
}

/// Rows that the data lacks, in words.
fn shortages(recipe: &Recipe, data: &PromptSet, grid: &Grid) -> Vec<String> {
    let mut out = vec![];
    let have = data.select(Split::Evaluation, Kind::Hazard).len();
    if have < recipe.suite.evaluation_prompts {
        out.push(format!("{} hazards to evaluate on are asked for, there are {have}", recipe.suite.evaluation_prompts));
    }
    let have = data.select(Split::Validation, Kind::Hazard).len();
    if have < recipe.suite.validation_prompts {
        out.push(format!("{} hazards to choose on are asked for, there are {have}", recipe.suite.validation_prompts));
    }
    let pairs = data.select(Split::Attack, Kind::Hazard).iter().filter(|row| row.target.is_some()).count();
    let wanted = grid.attacks.iter().map(|cell| cell.spec.pairs).max().unwrap_or(0);
    if pairs < wanted {
        out.push(format!("{wanted} pairs to fit attacks on are asked for, there are {pairs}"));
    }
    let openings = grid.attacks.iter().filter_map(|cell| Some((cell.spec.pairs, cell.spec.search.as_ref()?)));
    let few = openings.flat_map(|(wanted, search)| search.openings.iter().map(move |opening| (opening, wanted)));
    let of_opening = |(opening, wanted): (&String, usize)| {
        let pairs = data.select(Split::Attack, Kind::Hazard);
        let have = pairs.iter().filter(|row| row.target.is_some() && row.opening.as_ref() == Some(opening)).count();
        (have < wanted)
            .then(|| format!("{wanted} pairs of opening `{opening}` to search with are asked for, there are {have}"))
    };
    let few: BTreeSet<String> = few.filter_map(of_opening).collect();
    out.extend(few);
    let undecidable = recipe.utility.iter().filter_map(|task| undecidable(task, data));
    out.extend(undecidable);
    out
}

/// Why a rate of `task` can't be held to its bound by what `data` has, in words: the interval of no change at all is wider where there are few items.
fn undecidable(task: &TaskSpec, data: &PromptSet) -> Option<String> {
    let (bound, kinds) = (task.bound?, task.task.kinds());
    if !task.task.is_rate() || kinds.is_empty() {
        return None;
    }
    let have: usize = kinds.iter().map(|kind| data.select(Split::Evaluation, *kind).len()).sum();
    let items = have.min(task.items.unwrap_or(have));
    let name = task.task.name();
    if items == 0 {
        return Some(format!("`{name}` has a bound, and the data nothing to measure it on"));
    }
    let unchanged = Pairs { both: items as u64, ..Pairs::default() }.difference(1.0);
    (-unchanged.low > bound).then(|| {
        format!(
            "`{name}` has {items} items: with nothing changed the 95% interval of the change still reaches {:.1} points, \
             and {:.1} are allowed",
            -unchanged.low * 100.0,
            bound * 100.0
        )
    })
}

/// Bytes as GiB, one decimal.
fn gib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / (1_u64 << 30) as f64)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::recipe::{Data, EMBEDDED, Suite};
    use crate::utility::spec::Task;

    #[test]
    fn what_the_data_lacks_is_said() {
        let recipe = Recipe::embedded("llama").unwrap();
        let data = prompts_of(&Data { languages: vec!["pt".into()], ..Data::default() }).unwrap();
        let grid = Grid::new(&recipe.suite, 2).unwrap();
        let lacking = shortages(&recipe, &data, &grid).join("\n");
        assert!(lacking.contains("200 hazards") && lacking.contains("80 pairs"), "{lacking}");
    }

    #[test]
    fn a_search_for_an_opening_with_too_few_pairs_is_said() {
        let data = prompts_of(&Data { prompts: "builtin:tiny-chat".into(), ..Data::default() }).unwrap();
        let search = |pairs: usize| {
            let rows = format!("attacks: [{{kind: noreft, pairs: {pairs}, search: {{openings: [o7, o8]}}}}]");
            let suite = Suite::parse(&rows, Path::new("x")).unwrap();
            let recipe = Recipe { suite: suite.clone(), utility: vec![], ..Recipe::embedded("demo").unwrap() };
            shortages(&recipe, &data, &Grid::new(&suite, 2).unwrap())
        };
        let of_o7 = "80 pairs of opening `o7` to search with are asked for, there are 55";
        assert!(search(80).iter().any(|lacking| lacking == of_o7), "{:?}", search(80));
        assert_eq!(search(20), Vec::<String>::new());
    }

    #[test]
    fn a_bound_that_too_few_items_decide_is_said() {
        let data = prompts_of(&Data { languages: vec!["de".into()], ..Data::default() }).unwrap();
        let bounded = |task, items, bound| TaskSpec { items, bound: Some(bound), ..TaskSpec::new(task) };
        let said = |task, items, bound| undecidable(&bounded(task, items, bound), &data);
        // 52 everyday requests: 1.96² / (52 + 1.96²) = 6.9 points.
        assert!(said(Task::Benign, None, 0.05).unwrap().contains("52 items"));
        assert!(said(Task::Benign, None, 0.05).unwrap().contains("reaches 6.9 points, and 5.0 are allowed"));
        assert_eq!(said(Task::Benign, None, 0.07), None);
        assert!(said(Task::Benign, Some(40), 0.07).unwrap().contains("40 items"));
        assert!(said(Task::Recall, None, 0.5).unwrap().contains("nothing to measure"));
        assert_eq!(said(Task::Kl, None, 0.01), None, "no rate");
        assert_eq!(undecidable(&TaskSpec::new(Task::Benign), &data), None, "no bound");
    }

    #[test]
    fn the_bounds_of_the_bundled_recipes_can_be_decided() {
        for (name, _) in EMBEDDED {
            let recipe = Recipe::embedded(name).unwrap();
            let data = prompts_of(&recipe.data).unwrap();
            let lacking = shortages(&recipe, &data, &Grid::new(&recipe.suite, 6).unwrap());
            assert_eq!(lacking, Vec::<String>::new(), "{name}");
        }
    }

    #[test]
    fn a_joint_stage_keeps_far_more_than_its_adapters() {
        let mut blueprint = Blueprint { d_model: 64, d_ff: 128, n_heads: 4, n_kv_heads: 4, ..Blueprint::default() };
        blueprint.head_dim = 16;
        let stage = |text: &str| {
            let text = format!("schema: 1\nname: x\nsuite: {{attacks: [{{kind: identity}}]}}\nstages: [{text}]\n");
            Recipe::parse(&text, Path::new("x")).unwrap().stages.remove(0)
        };
        let block = 4 * 64 * 64 + 3 * 64 * 128;
        let local = kept_bytes(&stage("{kind: et, rank: 2}"), 3, &blueprint);
        assert_eq!(local, 3 * 4 * 2 * (4 * 128 + 3 * 192));
        let joint = kept_bytes(&stage("{kind: adversarial, train: weights}"), 3, &blueprint);
        assert_eq!(joint, 7 * 3 * 4 * block);
    }

    #[test]
    fn rows_are_listed_once_with_their_blocks() {
        let recipe = Recipe::embedded("demo").unwrap();
        let rows = attacks(&Grid::new(&recipe.suite, 6).unwrap());
        assert_eq!(rows[0], "noreft r2 p80 at blocks 0–5 (frozen and re-fitted)");
        let suite = Suite::parse("attacks: [{kind: noreft, positions: prompt}]", "suite.yaml".as_ref()).unwrap();
        assert_eq!(
            attacks(&Grid::new(&suite, 6).unwrap())[0],
            "noreft r2 p80 at blocks 0–5 (frozen and re-fitted, prompt tokens)"
        );
        assert!(rows.iter().any(|row| row.contains("random r2 p80") && row.ends_with("(control)")), "{rows:#?}");
    }
}
