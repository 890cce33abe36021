//! Laws of a run: what is published is what was measured, a killed run ends in the same bytes, nothing leaks into OUT.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::Device;
use immunise::attack::direction::{Classes, Contrast};
use immunise::attack::prefix::Prefix;
use immunise::attack::spec::AttackKind;
use immunise::attack::steering::Steering;
use immunise::attack::transport::Transport;
use immunise::attack::{AttackData, Pair};
use immunise::checkpoint::{Checkpoint, Digest, diff};
use immunise::data::{Kind, PromptSet, Split};
use immunise::defence::adversarial::PoolAdversary;
use immunise::defence::spec::{AdversarialSpec, Focus, Vector};
use immunise::event::{Event, Observer, Silent};
use immunise::intervention::{Edit, Placed, Positions};
use immunise::model::{Decoder, Point};
use immunise::pipeline::device::Machine;
use immunise::pipeline::model::measured_digests;
use immunise::pipeline::pool::Pool;
use immunise::pipeline::{Outcome, Request, harden};
use immunise::recipe::Recipe;
use immunise::report::{Report, Verdict};
use immunise::sign::{SigningKey, verify_folder};
use immunise::{Error, Result};

mod random_model;
use random_model::World;

fn request(world: &World, out: &str) -> Request {
    let model = Some(world.model().display().to_string());
    Request { model, allow_fail: true, ..Request::new(world.root().join(out), Machine::new(Device::Cpu, None)) }
}

fn run(world: &World, request: &Request) -> Result<Outcome> {
    harden(&Recipe::load(&world.recipe())?, request, &Silent)
}

/// Every file of a folder with its bytes.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = immunise::checkpoint::files::list(dir).unwrap();
    files.into_iter().map(|file| (file.clone(), fs::read(dir.join(file)).unwrap())).collect()
}

#[test]
fn what_is_published_is_what_was_measured() {
    let world = World::new();
    let key = SigningKey::generate().unwrap();
    let outcome = run(&world, &Request { key: Some(key.clone()), ..request(&world, "out") }).unwrap();
    let out = outcome.published.unwrap();
    let manifest = verify_folder(&out, &key.verifying_key()).unwrap();
    assert_eq!(manifest.name(), "out");
    let report = Report::from_json(&fs::read_to_string(out.join("immunisation/report.json")).unwrap(), "r").unwrap();
    let now = measured_digests(&Checkpoint::open(&out).unwrap()).unwrap();
    let now: BTreeMap<String, String> = now.into_iter().map(|(file, digest)| (file, digest.to_string())).collect();
    assert_eq!(report.hardened.digests, now);
    assert_eq!(report.findings[0].code, "fail-allowed", "a model that never refuses has nothing to defend");
    let names: Vec<&str> = report.attacks.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["noreft r2 p4 s2 b2", "noreft r2 p4 s2 b2", "ablation p4 best of 2", "ablation p4 best of 2"]);
    assert!(report.attacks.iter().all(|row| row.base.is_some() && report.control_of(row).is_some()));
    let card = fs::read_to_string(out.join("README.md")).unwrap();
    assert!(
        card.contains("license: apache-2.0") && card.contains("published in spite of that")
            || card.contains("could not be decided")
    );
    for file in
        ["report.html", "recipe.yaml", "bom.cdx.json", "attestation.intoto.jsonl"].map(|f| format!("immunisation/{f}"))
    {
        assert!(out.join(&file).is_file(), "{file}");
    }
}

#[test]
fn training_for_no_step_leaves_every_byte_of_the_model() {
    let world = World::new();
    let out = run(&world, &request(&world, "out")).unwrap().published.unwrap();
    let (before, after) = (contents(&world.model()), contents(&out));
    for (file, bytes) in before.iter().filter(|(file, _)| *file != "README.md") {
        assert!(after[file] == *bytes, "{file} changed");
    }
    let report =
        Report::from_json(&String::from_utf8(after["immunisation/report.json"].clone()).unwrap(), "r").unwrap();
    assert_eq!(report.hardened.delta.tensors_changed, 0);
    for row in report.rows(false) {
        assert_eq!(row.base, Some(row.hardened), "the same model under the same edit");
    }
}

#[test]
fn a_run_that_does_not_pass_publishes_nothing_but_says_why() {
    let world = World::new();
    let outcome = run(&world, &Request { allow_fail: false, ..request(&world, "out") }).unwrap();
    assert_ne!(outcome.report.verdict, Verdict::Pass);
    assert_eq!(outcome.published, None);
    assert_eq!(world.left_behind(), ["out.run"]);
    for file in ["report.json", "report.html", "metrics.json"] {
        assert!(outcome.run.join(file).is_file(), "{file}");
    }
}

#[test]
fn nothing_in_the_output_depends_on_the_place_or_on_a_kill() {
    let world = World::new();
    let whole = run(&world, &request(&world, "a/out")).unwrap().published.unwrap();
    // The same prompts from another folder.
    let moved = world.root().join("elsewhere/prompts.jsonl");
    fs::create_dir(world.root().join("elsewhere")).unwrap();
    fs::copy(world.root().join("prompts.jsonl"), &moved).unwrap();
    let moved = [format!("data.prompts={}", moved.display())];
    let moved = Recipe::load(&world.recipe()).unwrap().with_overrides(&moved).unwrap();
    let mut kills = 0;
    let killed = loop {
        let request = request(&world, "b/out");
        // The run ends at the first unit that it finishes, which is kept.
        if kills < 3 {
            request.stop.request();
        }
        match harden(&moved, &request, &Silent) {
            Ok(outcome) => break outcome.published.unwrap(),
            Err(Error::Interrupted { run }) => {
                kills += 1;
                assert_eq!(run, world.root().join("b/out.run"));
                assert!(!world.root().join("b/out").exists());
            }
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(kills, 3);
    let (whole, killed) = (contents(&whole), contents(&killed));
    assert_eq!(whole.keys().collect::<Vec<_>>(), killed.keys().collect::<Vec<_>>());
    let root = world.root().display().to_string();
    for (file, bytes) in &whole {
        assert!(Digest::of(bytes) == Digest::of(&killed[file]), "{file} differs after a kill");
        assert!(!String::from_utf8_lossy(bytes).contains(&root), "{file} holds a path of this machine");
    }
}

#[test]
fn a_model_that_does_not_fit_into_memory_is_hardened_from_its_files() {
    let stage =
        "{kind: et, steps: 2, rounds: 1, rank: 1, attack_pairs: 2, prompts: 2, anchors: 2, batch: 2, layers: [0]}";
    let world = World::with_stage(stage);
    let request = Request { machine: Machine::new(Device::Cpu, Some(1)), ..request(&world, "out") };
    let out = run(&world, &request).unwrap().published.unwrap();
    let difference = diff(&Checkpoint::open(&world.model()).unwrap(), &Checkpoint::open(&out).unwrap()).unwrap();
    let changed: Vec<_> = difference.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    assert!(!changed.is_empty() && changed.iter().all(|name| name.starts_with("model.layers.0.")), "{changed:?}");
    let held = run(&world, &self::request(&world, "held")).unwrap().published.unwrap();
    let bytes = |out: &Path| fs::read(out.join("model.safetensors")).unwrap();
    assert_eq!(Digest::of(&bytes(&out)), Digest::of(&bytes(&held)), "memory changes no number");
}

/// How many of `attacks` edits are of each of the two blocks, when those of the second reach much and the first's nothing.
fn blocks_met(focus: Focus, edits: usize, attacks: usize) -> [usize; 2] {
    let world = World::new();
    let decoder = Decoder::load(&Checkpoint::open(&world.model()).unwrap(), &Device::Cpu).unwrap();
    let pairs = (0..4).map(|word| Pair { prompt: vec![word, 7], target: vec![9, word], opening: None }).collect();
    let data = AttackData { pairs, ..AttackData::default() };
    let spec = AdversarialSpec {
        inner_steps: 1,
        warm_up: 1,
        batch: 1,
        edits_per_step: edits,
        starts_from_base: false,
        focus,
        ..AdversarialSpec::default()
    };
    let mut pool = Pool::new(&spec, &[0, 1], &[0, 1], &data, 5).unwrap();
    let mut met = [0; 2];
    for step in 0..attacks {
        let found = pool.attack(&decoder, step).unwrap();
        assert_eq!(found.len(), edits);
        let layers: Vec<usize> = found
            .iter()
            .map(|(edit, _)| match edit {
                Placed::LowRank { layer, .. } => *layer,
                other => panic!("{other:?}"),
            })
            .collect();
        layers.iter().for_each(|&layer| met[layer] += 1);
        pool.reached(&layers.iter().map(|&layer| 4.0 * layer as f64).collect::<Vec<_>>());
    }
    let (name, reached) = pool.strongest().unwrap();
    assert!(name.ends_with("at block 1") && reached == 4.0, "{name} {reached}");
    met
}

#[test]
fn the_strongest_edits_are_met_more_often_and_the_others_still() {
    assert_eq!(blocks_met(Focus::None, 1, 60), [30, 30]);
    let [weak, strong] = blocks_met(Focus::Strongest, 1, 200);
    // Each of the second block's two edits weighs three times one of the first's: three quarters, of which 200 draws may miss a tenth.
    assert!((130..=170).contains(&strong) && weak + strong == 200, "{weak} {strong}");
    // None of the pool's four is met twice in one step.
    assert_eq!(blocks_met(Focus::Strongest, 4, 5), [10, 10]);
}

#[test]
fn learned_edits_are_of_the_blocks_that_the_pool_is_given() {
    let world = World::new();
    let decoder = Decoder::load(&Checkpoint::open(&world.model()).unwrap(), &Device::Cpu).unwrap();
    let pair = Pair { prompt: vec![3, 7], target: vec![9, 3, 4], opening: None };
    let data = AttackData { pairs: vec![pair], ..AttackData::default() };
    let spec = AdversarialSpec {
        inner_steps: 1,
        batch: 1,
        ranks: vec![1, 2],
        joint: 1,
        edits_per_step: 3,
        starts_from_base: false,
        ..AdversarialSpec::default()
    };
    let mut pool = Pool::new(&spec, &[0, 1], &[1], &data, 5).unwrap();
    let found: Vec<Edit> = pool.attack(&decoder, 0).unwrap().iter().map(|(edit, _)| edit.edit().unwrap()).collect();
    let of = |edit: &Edit| match edit {
        Edit::LowRank { layer, rank, .. } => (*layer, *rank),
        other => panic!("{other:?}"),
    };
    let [first, second, Edit::Several { edits: joint }] = &found[..] else { panic!("{found:?}") };
    assert_eq!([of(first), of(second)], [(1, 1), (1, 2)], "two of block 1, of both ranks");
    assert_eq!(joint.iter().map(of).collect::<Vec<_>>(), [(0, 1), (1, 1)], "one of all blocks");
}

#[test]
fn the_projected_direction_is_the_one_that_serves_the_attacker_best() {
    let world = World::new();
    let decoder = Decoder::load(&Checkpoint::open(&world.model()).unwrap(), &Device::Cpu).unwrap();
    let pair = Pair { prompt: vec![3, 7, 5], target: vec![9, 3, 4, 8, 2], opening: None };
    let data = AttackData {
        pairs: vec![pair.clone()],
        harmless: vec![vec![6, 2, 11]],
        twins: vec![vec![12, 10]],
        ..AttackData::default()
    };
    // The stage is of the second block, and a projection acts at both.
    let prefix = Prefix::new(&decoder, 0, &[&pair], data.pad).unwrap();
    let candidates = [Contrast::Harmless, Contrast::Twins].map(|contrast| {
        let classes = Classes::collect(&decoder, &data, contrast, 1, Point::ResidPre, 0).unwrap();
        let edit = classes[1].projection(1).unwrap();
        let placed = edit.place(&Device::Cpu).unwrap();
        let loss = prefix.loss(&[0], &placed, Positions::All).unwrap().to_scalar::<f32>().unwrap();
        (loss, edit)
    });
    let [(first, _), (second, _)] = candidates;
    assert!((first - second).abs() > 1e-4, "{first} {second}: nothing to choose");
    let best = &candidates[usize::from(second < first)].1;
    let spec = AdversarialSpec { pool: 0, vectors: vec![Vector::Ablation], batch: 1, ..AdversarialSpec::default() };
    let found = Pool::new(&spec, &[1], &[1], &data, 5).unwrap().attack(&decoder, 0).unwrap();
    assert_eq!(found[0].0.edit().unwrap(), *best);
    // A random one is as long as a difference of means at one of its strengths, and points elsewhere.
    let vector = |vector: Vector| {
        let spec = AdversarialSpec { vectors: vec![vector], ..spec.clone() };
        match Pool::new(&spec, &[1], &[1], &data, 5).unwrap().attack(&decoder, 0).unwrap()[0].0.edit().unwrap() {
            Edit::Add { vector, .. } => vector,
            other => panic!("no vector: {other:?}"),
        }
    };
    let (known, random) = (vector(Vector::MeanDifference), vector(Vector::Random));
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let norms = [&known, &random].map(|vector| dot(vector, vector).sqrt());
    let strengths = [0.02_f32, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0];
    let mut ratios = strengths.iter().flat_map(|a| strengths.iter().map(move |b| a / b));
    let ratio = norms[1] / norms[0];
    assert!(ratios.any(|expected| (ratio / expected - 1.0).abs() < 1e-3), "{ratio}");
    assert!(dot(&known, &random).abs() < 0.999 * norms[0] * norms[1], "{known:?} {random:?}");
}

#[test]
fn heads_are_steered_and_carried_over_at_the_setting_that_serves_the_attacker_best() {
    let world = World::new();
    let decoder = Decoder::load(&Checkpoint::open(&world.model()).unwrap(), &Device::Cpu).unwrap();
    let pair = |word: u32| Pair { prompt: vec![3, word, 5], target: vec![9, word, 4], opening: None };
    let pairs: Vec<Pair> = (6..14).map(pair).collect();
    let data =
        AttackData { harmless: (14..22).map(|word| vec![word, 2, 11]).collect(), pairs, ..AttackData::default() };
    let layers: Vec<usize> = (0..decoder.n_layers()).collect();
    let all: Vec<&Pair> = data.pairs.iter().collect();
    let met = |vector: Vector| -> Vec<(Edit, Positions)> {
        let positions = vec![Positions::Prompt, Positions::Last];
        let spec =
            AdversarialSpec { pool: 0, vectors: vec![vector], positions, batch: 256, ..AdversarialSpec::default() };
        let mut pool = Pool::new(&spec, &layers, &layers, &data, 5).unwrap();
        let found = (0..12).flat_map(|step| pool.attack(&decoder, step).unwrap());
        found.map(|(edit, at)| (edit.edit().unwrap(), at)).collect()
    };
    let prefix = Prefix::new(&decoder, 0, &all, data.pad).unwrap();
    let loss = |edit: &Edit, at: Positions| {
        let rows: Vec<usize> = (0..prefix.len()).collect();
        prefix.loss(&rows, &edit.place(&Device::Cpu).unwrap(), at).unwrap().to_scalar::<f32>().unwrap()
    };
    let steering = Steering::find(AttackKind::ItiHeads, &layers, &decoder, &data, 8).unwrap().unwrap();
    let signed = [1.0, 3.0, 8.0, 15.0, 30.0].into_iter().flat_map(|strength| [-strength, strength]);
    let shifts: Vec<Edit> = signed.map(|strength| steering.edit(strength)).collect();
    let transport = Transport::find(&layers, &decoder, &data, Contrast::Harmless, 8).unwrap();
    let parts = |heads| [0.5, 1.0, 2.0].map(|part| transport.edit(heads, part));
    let maps: Vec<Edit> = transport.counts().into_iter().flat_map(parts).collect();
    for (vector, candidates) in [(Vector::ItiHeads, shifts), (Vector::OptimalTransport, maps)] {
        let met = met(vector);
        for at in [Positions::Prompt, Positions::Last] {
            let losses: Vec<f32> = candidates.iter().map(|edit| loss(edit, at)).collect();
            let mean = losses.iter().sum::<f32>() / losses.len() as f32;
            let chosen: Vec<f32> =
                met.iter().filter(|(_, there)| *there == at).map(|(edit, _)| loss(edit, at)).collect();
            assert!(!chosen.is_empty() && met.iter().all(|(edit, _)| candidates.contains(edit)), "{vector:?} {at:?}");
            // The pool chooses on a batch that it draws from the same pairs, so what is nearly as good may win.
            let lowest = losses.iter().copied().fold(f32::INFINITY, f32::min);
            let bound = lowest + 0.3 * (mean - lowest);
            assert!(chosen.iter().all(|chosen| *chosen <= bound), "{vector:?} {at:?}: {chosen:?} of {losses:?}");
        }
    }
}

/// Where the edits of the lives of one learned edit act, each of one use.
fn lives_at(choices: &[Positions]) -> Vec<Positions> {
    let world = World::new();
    let decoder = Decoder::load(&Checkpoint::open(&world.model()).unwrap(), &Device::Cpu).unwrap();
    let pairs = (0..4).map(|word| Pair { prompt: vec![word, 7], target: vec![9, word], opening: None }).collect();
    let data = AttackData { pairs, ..AttackData::default() };
    let spec = AdversarialSpec {
        positions: choices.to_vec(),
        pool: 1,
        ranks: vec![1],
        inner_steps: 1,
        warm_up: 1,
        batch: 1,
        restart_after: 1,
        ..AdversarialSpec::default()
    };
    let mut pool = Pool::new(&spec, &[1], &[1], &data, 5).unwrap();
    (0..8).flat_map(|step| pool.attack(&decoder, step).unwrap()).map(|(_, at)| at).collect()
}

#[test]
fn the_lives_of_a_learned_edit_go_through_the_choices_of_tokens() {
    use Positions::{All, Last, Prompt};
    assert_eq!(lives_at(&[All]), [All; 8]);
    assert_eq!(lives_at(&[All, Prompt, Last])[..6], [Prompt, Last, All, Prompt, Last, All]);
    // Every other life begins from the base's edit: of either kind both choices come up.
    assert_eq!(lives_at(&[Prompt, Last]), [Last, Last, Prompt, Prompt, Last, Last, Prompt, Prompt]);
}

#[test]
fn a_joint_stage_goes_on_bit_for_bit_where_it_was_stopped() {
    goes_on_bit_for_bit("focus: ends");
    goes_on_bit_for_bit("focus: strongest, average: 0.9");
    goes_on_bit_for_bit("interrupted: 2");
}

fn goes_on_bit_for_bit(settings: &str) {
    let stage = format!(
        "{{kind: adversarial, rank: 2, steps: 50, inner_steps: 1, warm_up: 1, pool: 1, ranks: [1], joint: 1, {settings}, batch: 2, \
         anchor_batch: 2, restart_after: 3, vectors: [mean-difference, ablation, random, iti-heads, optimal-transport], \
         vector_life: 3, positions: [all, prompt, last], amplify: [1.0, 2.0]}}"
    );
    let world = World::with_stage(&stage);
    let whole = run(&world, &request(&world, "a/out")).unwrap().published.unwrap();
    // Every run is stopped at the first unit that it finishes, so one at least starts from a kept state of the stage.
    let mut stops = 0;
    let stopped = loop {
        let request = request(&world, "b/out");
        request.stop.request();
        match run(&world, &request) {
            Ok(outcome) => break outcome.published.unwrap(),
            Err(Error::Interrupted { .. }) => stops += 1,
            Err(error) => panic!("{error}"),
        }
        assert!(stops < 200, "a stopped run makes no progress");
    };
    let weights = |out: &Path| fs::read(out.join("model.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&stopped), "after {stops} stops");
    assert!(weights(&whole) != fs::read(world.model().join("model.safetensors")).unwrap(), "nothing was trained");
}

#[test]
fn averaged_weights_are_those_of_the_last_steps() {
    let weights = |average: f64| {
        let world = World::with_stage(&format!(
            "{{kind: adversarial, train: weights, steps: 45, learning_rate: 0.01, inner_steps: 1, warm_up: 1, pool: 1, ranks: [1], batch: 2, \
             anchor_batch: 2, average: {average}}}"
        ));
        let out = run(&world, &request(&world, "out")).unwrap().published.unwrap();
        fs::read(out.join("model.safetensors")).unwrap()
    };
    // Weights are taken after steps 20, 40 and 45.
    let last = weights(0.0);
    assert!(weights(0.1) == last, "of the last four steps there is the last one only");
    assert!(weights(0.5) != last, "of the last 22 there are two");
}

#[test]
fn interrupted_answers_and_their_weight_change_what_is_trained() {
    let weights = |settings: &str| {
        let world = World::with_stage(&format!(
            "{{kind: adversarial, rank: 2, steps: 8, learning_rate: 0.01, inner_steps: 1, warm_up: 1, pool: 1, ranks: [1], batch: 2, \
             anchor_batch: 2, {settings}}}"
        ));
        let out = run(&world, &request(&world, "out")).unwrap().published.unwrap();
        fs::read(out.join("model.safetensors")).unwrap()
    };
    let (without, little) = (weights("interrupted: 0"), weights("interrupted: 2"));
    assert!(without == weights("interrupted: 0, interrupted_weight: 1.0"), "a weight of nothing");
    assert!(little != without);
    assert!(little != weights("interrupted: 2, interrupted_weight: 1.0"));
}

/// Keeps the notes.
#[derive(Default)]
struct Notes(std::sync::Mutex<Vec<String>>);

impl Observer for Notes {
    fn event(&self, event: Event) {
        if let Event::Note(text) | Event::Warning(text) = event {
            self.0.lock().unwrap().push(text);
        }
    }
}

#[test]
fn another_threshold_costs_no_new_cell() {
    let world = World::new();
    let request = Request { allow_fail: false, ..request(&world, "out") };
    run(&world, &request).unwrap();
    let units = || fs::read_dir(world.root().join("out.run/units")).unwrap().count();
    let before = units();
    let recipe = Recipe::load(&world.recipe()).unwrap().with_overrides(&["thresholds.control_asr.max=0.5"]).unwrap();
    let notes = Notes::default();
    harden(&recipe, &request, &notes).unwrap();
    assert_eq!(units(), before);
    let notes = notes.0.into_inner().unwrap().join("\n");
    assert!(notes.contains("holds a run with another recipe"), "{notes}");
    let other = recipe.with_overrides(&["seed=4"]).unwrap();
    harden(&other, &request, &Silent).unwrap();
    assert!(units() > before, "another seed is another measurement");
}

#[test]
fn a_searched_attack_counts_all_it_spent_and_is_chosen_on_validation() {
    let world = World::new();
    let search = "{kind: noreft, pairs: 4, steps: 2, batch: 2, layers: [1], knowledge: [adaptive], \
                  search: {learning_rates: [0.01, 0.03], seeds: 1}}";
    let recipe = Recipe::load(&world.recipe()).unwrap();
    let recipe = recipe.with_overrides(&[format!("suite.attacks.0={search}")]).unwrap();
    let report = harden(&recipe, &request(&world, "out"), &Silent).unwrap().report;
    let row = &report.attacks[0];
    assert_eq!(row.name, "noreft r2 p4 s2 b2 search");
    // Two step sizes from a random start and from the base's edit; each two steps of two pairs.
    assert_eq!(row.budget.gradient_evaluations, 4 * 2 * 2);
    // And the base's edit as it is, for nothing.
    assert!(row.budget.search.contains("4 of 4 fitted beside that of the base"), "{row:?}");
    assert!(row.budget.search.contains("validation"), "{row:?}");
    assert!(row.attacker_has_base && row.adaptive);
    assert_eq!(row.budget.pairs, 4, "as asked for");
}

#[test]
fn a_search_tries_openings_beside_the_mixture_and_reports_the_pairs_of_what_it_took() {
    let world = World::new();
    let text = fs::read_to_string(world.root().join("prompts.jsonl")).unwrap();
    let data = PromptSet::from_jsonl("prompts", &text).unwrap();
    let pairs = data.select(Split::Attack, Kind::Hazard);
    let opening = pairs[0].opening.clone().unwrap();
    let have = pairs.iter().filter(|row| row.opening.as_ref() == Some(&opening)).count();
    assert!(0 < have && have < pairs.len(), "{have} of {}", pairs.len());
    let row = format!(
        "{{kind: noreft, pairs: {}, steps: 2, batch: 2, layers: [1], \
         search: {{learning_rates: [0.01], start_from_base: false, seeds: 1, openings: [{opening}]}}}}",
        pairs.len()
    );
    let recipe = Recipe::load(&world.recipe()).unwrap();
    let recipe = recipe.with_overrides(&[format!("suite.attacks.0={row}")]).unwrap();
    let report = harden(&recipe, &request(&world, "out"), &Silent).unwrap().report;
    let budget = &report.attacks[0].budget;
    assert!(budget.search.contains("2 openings") && budget.search.contains("2 of 2 fitted"), "{budget:?}");
    let expected = if budget.choice.contains(&format!("opening {opening}")) { have } else { pairs.len() };
    assert_eq!(budget.pairs, expected as u64, "{budget:?}");
}
