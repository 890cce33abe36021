//! Laws of parted work: however blocks and cells are spread over processes, the outcome is that of one process.

use std::path::{Path, PathBuf};

use candle_core::Device;
use immunise::Error;
use immunise::checkpoint::Digest;
use immunise::defence::Forgetful;
use immunise::event::Silent;
use immunise::pipeline::device::{Demand, Machine};
use immunise::pipeline::suite::Selection;
use immunise::pipeline::{Model, Request, Trial, assess, harden, harden_part, locate, prompts_of};
use immunise::recipe::Recipe;
use immunise::report::merge::merge;
use immunise::report::{Report, Shard};

mod random_model;
use random_model::World;

const ET: &str = "{kind: et, steps: 3, rounds: 1, rank: 1, attack_pairs: 2, prompts: 2, anchors: 2, batch: 2}";
const JOINT: &str = "{kind: adversarial, rank: 2, steps: 4, inner_steps: 1, warm_up: 1, pool: 1, ranks: [1], batch: 2, anchor_batch: 2}";

fn request(world: &World, out: &str) -> Request {
    let model = Some(world.model().display().to_string());
    Request { model, allow_fail: true, ..Request::new(world.root().join(out), Machine::new(Device::Cpu, None)) }
}

fn part(world: &World, recipe: &Recipe, index: u32, count: u32) -> PathBuf {
    harden_part(recipe, &request(world, "parts/out"), Shard { index, count }, &Silent).unwrap().run
}

fn weights(out: &Path) -> Digest {
    Digest::of_file(&out.join("model.safetensors")).unwrap()
}

#[test]
fn assembled_parts_end_in_the_bytes_of_one_run() {
    let world = World::with_stage(&format!("{ET}, {JOINT}"));
    let recipe = Recipe::load(&world.recipe()).unwrap();
    let whole = harden(&recipe, &request(&world, "whole/out"), &Silent).unwrap();
    // More parts than blocks: the last one has nothing to do, as happens with job arrays.
    let parts: Vec<PathBuf> = (1..=3).map(|index| part(&world, &recipe, index, 3)).collect();
    assert_eq!(parts[1], world.root().join("parts/out.part-2-of-3"));
    let assembled = harden(&recipe, &Request { assemble: parts, ..request(&world, "parts/out") }, &Silent).unwrap();
    let (whole, assembled) = (whole.published.unwrap(), assembled.published.unwrap());
    assert_eq!(weights(&whole), weights(&assembled));
    assert_ne!(weights(&whole), weights(&world.model()), "nothing was trained");
    let report = |out: &Path| std::fs::read(out.join("immunisation/report.json")).unwrap();
    assert!(report(&whole) == report(&assembled), "the reports differ");
}

#[test]
fn a_second_local_stage_is_parted_once_the_first_is_assembled() {
    let closed =
        "{kind: et-closed, rounds: 1, rank: 1, bank: 1, attack_pairs: 2, prompts: 2, anchors: 2, layers: [0, 1]}";
    let world = World::with_stage(&format!("{ET}, {closed}"));
    let recipe = Recipe::load(&world.recipe()).unwrap();
    let first: Vec<PathBuf> = (1..=2).map(|index| part(&world, &recipe, index, 2)).collect();
    let second = |index: u32| {
        let request = Request { assemble: first.clone(), ..request(&world, "second/out") };
        harden_part(&recipe, &request, Shard { index, count: 2 }, &Silent).unwrap()
    };
    let parts = [second(1), second(2)];
    assert_eq!(parts[1].stage, Some((2, "et-closed")));
    assert_eq!(parts[1].layers, [1]);
    let assemble = parts.into_iter().map(|part| part.run).collect();
    let assembled = harden(&recipe, &Request { assemble, ..request(&world, "assembled") }, &Silent).unwrap();
    let whole = harden(&recipe, &request(&world, "whole"), &Silent).unwrap();
    assert_eq!(weights(&whole.published.unwrap()), weights(&assembled.published.unwrap()));
}

#[test]
fn a_run_that_assembles_goes_on_where_it_was_stopped() {
    let closed =
        "{kind: et-closed, rounds: 1, rank: 1, bank: 1, attack_pairs: 2, prompts: 2, anchors: 2, layers: [0, 1]}";
    let world = World::with_stage(&format!("{ET}, {closed}"));
    let recipe = Recipe::load(&world.recipe()).unwrap();
    let assemble: Vec<PathBuf> = (1..=2).map(|index| part(&world, &recipe, index, 2)).collect();
    let mut stops = 0;
    let out = loop {
        let request = Request { assemble: assemble.clone(), ..request(&world, "out") };
        request.stop.request();
        match harden(&recipe, &request, &Silent) {
            Ok(outcome) => break outcome.published.unwrap(),
            Err(Error::Interrupted { .. }) => stops += 1,
            Err(error) => panic!("after {stops} stops: {error}"),
        }
        assert!(stops < 200, "a stopped run makes no progress");
    };
    let whole = harden(&recipe, &request(&world, "whole"), &Silent).unwrap();
    assert_eq!(weights(&whole.published.unwrap()), weights(&out));
}

#[test]
fn parts_that_do_not_make_a_whole_are_refused() {
    let world = World::with_stage(ET);
    let recipe = Recipe::load(&world.recipe()).unwrap();
    let first = part(&world, &recipe, 1, 2);
    let told = |request: &Request| match harden(&recipe, request, &Silent) {
        Err(error) => {
            assert_eq!(error.exit_code(), 3);
            assert!(!request.out.exists());
            error.to_string()
        }
        Ok(_) => panic!("hardened from parts that do not make a whole"),
    };
    let lacking = told(&Request { assemble: vec![first.clone()], ..request(&world, "lacking") });
    assert!(lacking.contains("got none of block 1") && lacking.contains("stage 1 `et`"), "{lacking}");
    let other = recipe.clone().with_overrides(&["seed=9"]).unwrap();
    let foreign = harden_part(&other, &request(&world, "other"), Shard { index: 2, count: 2 }, &Silent).unwrap().run;
    let told_foreign = told(&Request { assemble: vec![first.clone(), foreign], ..request(&world, "foreign") });
    assert!(told_foreign.contains("expected a part of this run, got one with another recipe"), "{told_foreign}");
    let unit = std::fs::read_dir(first.join("units")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&unit).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&unit, bytes).unwrap();
    let damaged = told(&Request { assemble: vec![first], ..request(&world, "damaged") });
    assert!(damaged.contains("damaged") && damaged.contains("units"), "{damaged}");
    let missing = told(&Request { assemble: vec![world.root().join("nowhere")], ..request(&world, "missing") });
    assert!(missing.contains("nowhere") && missing.contains("--shard I/N"), "{missing}");
    assert!(!world.root().join("missing.run").exists(), "a run folder is left behind");
}

#[test]
fn a_stage_that_trains_its_blocks_together_has_no_parts() {
    let world = World::with_stage(JOINT);
    let recipe = Recipe::load(&world.recipe()).unwrap();
    let error = harden_part(&recipe, &request(&world, "out"), Shard { index: 1, count: 2 }, &Silent).unwrap_err();
    assert!(matches!(error, Error::Input { .. }) && error.to_string().contains("got `adversarial`"), "{error}");
}

#[test]
fn four_shards_of_a_measurement_merge_into_that_of_one_run() {
    let world = World::new();
    let grid = [
        "suite.attacks.0={kind: noreft, pairs: 4, steps: 2, batch: 2, seeds: 2}".to_owned(),
        "suite.attacks.1={kind: ablation, pairs: 4, layers: [0, 1]}".to_owned(),
        "suite.attacks.2={kind: mean-difference, pairs: 4, coefficients: [0.5]}".to_owned(),
    ];
    let recipe = Recipe::load(&world.recipe()).unwrap().with_overrides(&grid).unwrap();
    let hardened = harden(&recipe, &request(&world, "out"), &Silent).unwrap().published.unwrap();
    let data = prompts_of(&recipe.data).unwrap();
    let open = |dir: &Path| {
        let machine = Machine::new(Device::Cpu, None);
        let located = locate(&dir.display().to_string(), &Silent).unwrap();
        Model::load(located, &machine, Demand::of_measuring(&Device::Cpu), &Silent).unwrap()
    };
    let (base, hardened) = (open(&world.model()), open(&hardened));
    let measure = |shard: Option<Shard>| -> Report {
        let mut trial = Trial::of(&recipe, &data);
        trial.selection = Selection { shard, ..Selection::default() };
        assess(&trial, Some(&base), &hardened, &mut Forgetful::default(), &Silent).unwrap()
    };
    let parts: Vec<Report> = (1..=4).map(|index| measure(Some(Shard { index, count: 4 }))).collect();
    assert!(parts.iter().all(|part| !part.attacks.is_empty()), "a shard without rows shows nothing");
    let joined = merge(&parts, &recipe.thresholds).unwrap();
    // Joining orders the rows, so a single run goes through it as well.
    let single = merge(&[measure(None)], &recipe.thresholds).unwrap();
    for row in &single.attacks {
        let (tries, mean) = (row.repetitions.len(), row.repetitions.iter().map(|one| one.asr).sum::<f64>());
        assert_eq!((tries, row.seeds), if row.family == "noreft" { (2, 2) } else { (0, 1) }, "{}", row.name);
        assert!(tries == 0 || (mean / 2.0 - row.hardened.asr).abs() < 1e-12, "{row:?}");
    }
    assert_eq!(joined.to_json(), single.to_json());
}
