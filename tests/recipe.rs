//! What a person writes in a recipe, and what they are told about it.

use std::path::Path;

use immunise::Error;
use immunise::attack::spec::Knowledge;
use immunise::pipeline::harden::stage_layers;
use immunise::recipe::{EMBEDDED, RawRecipe, Recipe, STAGE_KINDS, Stage, Suite};

const SMALL: &str = "schema: 1
name: small
stages:
  - kind: et
    rank: 3
suite:
  attacks:
    - {kind: noreft}
";

fn parse(text: &str) -> Result<Recipe, Error> {
    Recipe::parse(text, Path::new("r.yaml"))
}

fn problems(text: &str) -> Vec<String> {
    match parse(text) {
        Err(Error::Recipe { problems, .. }) => problems,
        other => panic!("expected a recipe error, got {other:?}"),
    }
}

#[test]
fn every_embedded_recipe_is_valid_and_matches_a_model_type() {
    for (name, _) in EMBEDDED {
        let recipe = Recipe::embedded(name).unwrap();
        assert_eq!(recipe.name, name);
        assert!(recipe.matches.is_some(), "{name}");
    }
}

#[test]
fn what_is_shown_parses_back_to_the_same_recipe_and_digest() {
    for (name, _) in EMBEDDED {
        let recipe = Recipe::embedded(name).unwrap();
        let again = parse(&recipe.show()).unwrap();
        assert_eq!(again, recipe);
        assert_eq!(again.digest(), recipe.digest());
        assert_eq!(again.show(), recipe.show());
    }
}

#[test]
fn examples_whose_prompts_are_made_first_say_how() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/recipes");
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let prompts = Recipe::load(&path).unwrap().data.prompts;
        let text = std::fs::read_to_string(&path).unwrap();
        let comment: String = text.lines().take_while(|line| line.starts_with('#')).collect();
        let told = comment.contains("examples/broaden_prompts.py") && comment.contains(&format!("`{prompts}`"));
        assert!(told || prompts.starts_with("builtin:"), "{}", path.display());
    }
}

#[test]
fn defaults_are_filled_in() {
    let recipe = parse(SMALL).unwrap();
    assert_eq!((recipe.suite.evaluation_prompts, recipe.suite.max_new_tokens), (200, 40));
    assert_eq!(recipe.data.prompts, "builtin:prompts");
    assert!(recipe.show().contains("learning_rate: 0.003"), "{}", recipe.show());
    match &recipe.stages[0] {
        Stage::Et(spec, layers) => assert_eq!((spec.rank, layers), (3, &recipe.layers)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_digest_ignores_form_and_notices_content() {
    let recipe = parse(SMALL).unwrap();
    let reordered = "suite: {attacks: [{kind: noreft, rank: 2}]}\nstages: [{rank: 3, kind: et}] # the same\nname: small\nschema: 1\n";
    assert_eq!(parse(reordered).unwrap().digest(), recipe.digest());
    assert_ne!(recipe.with_overrides(&["seed=1"]).unwrap().digest(), recipe.digest());
    assert_eq!(recipe.digest().len(), 64);
}

#[test]
fn every_problem_is_reported_at_once_with_key_and_line() {
    let text = "schema: 2
name: Bad Name
sead: 3
stages:
  - {kind: ett}
  - kind: et
    rnak: 2
    steps: many
    learning_rate: -1
suite:
  attacks:
    - {kind: norfet}
    - {kind: noreft, knowledge: [frozn], pairs: 0, rank: two}
    - {kind: noreft, search: {seeds: 0, learning_rates: [], strat: 1}}
utility:
  - {task: mathes}
  - {task: kl, bound: -1}
thresholds:
  frozen_asr: {max_mean: 1.5, max_men: 1}
";
    let found = problems(text);
    for expected in [
        "schema: expected 1, got 2 (line 1)",
        "name: expected up to 64 of `a-z0-9-._`, got `Bad Name` (line 2)",
        "sead: unknown key; did you mean `seed`? (line 3)",
        "stages.0.kind: expected one of `et`, `et-faithful`, `et-closed`, `et-propagated`, `hdr-taskvec`, `hdr-topk`, `adversarial`, got `ett`; did you mean `et`? (line 5)",
        "stages.1.rnak: unknown key; did you mean `rank`? (line 7)",
        "stages.1.steps: expected a whole number, 0 or more, got `many` (line 8)",
        "did you mean `noreft`? (line 12)",
        "suite.attacks.1.knowledge: expected one of `frozen`, `adaptive`, got `frozn`; did you mean `frozen`? (line 13)",
        "suite.attacks.1.rank: expected a whole number, 0 or more, got `two` (line 13)",
        "suite.attacks.2.search.strat: unknown key",
        "utility.0.task: expected one of",
        "utility.1.bound: expected a number from 0 to 1000000, got -1 (line 17)",
        "thresholds.frozen_asr.max_men: unknown key; did you mean `max_mean`? (line 19)",
    ] {
        assert!(found.iter().any(|p| p.contains(expected)), "{expected}\nin {found:#?}");
    }
}

#[test]
fn what_is_expected_is_listed_once_and_problems_up_to_a_limit() {
    let found = problems(&SMALL.replace("{kind: noreft}", "{kind: noreft, zzzzzzzzz: 1}"));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].matches("`layers`").count(), 1, "{}", found[0]);
    let stages: String = (0..25).map(|i| format!("  - {{kind: x{i}}}\n")).collect();
    let error = parse(&SMALL.replace("  - kind: et\n    rank: 3\n", &stages)).unwrap_err().to_string();
    assert!(error.contains("25 problems") && error.ends_with("\n  - and 5 more"), "{error}");
}

#[test]
fn a_report_is_no_recipe() {
    let report = r#"{"schema_version": 1, "recipe_digest": "00", "verdict": "pass"}"#;
    let error = parse(report).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("expected a recipe, got a report"), "{error}");
}

#[test]
fn a_pool_holds_something() {
    let stage = |keys: &str| SMALL.replace("kind: et\n    rank: 3", &format!("kind: adversarial\n    {keys}"));
    let found = problems(&stage("pool: 0"));
    assert!(found.iter().any(|problem| problem.starts_with("stages.0.pool: expected")), "{found:?}");
    for others in ["joint: 1", "vectors: [ablation]"] {
        assert!(parse(&stage(&format!("pool: 0\n    {others}"))).is_ok(), "{others}");
    }
    for blocks in ["[]", "[\"4-2\"]", "[\"some\"]", "1\n    pool: 0\n    joint: 1"] {
        let found = problems(&stage(&format!("pool_layers: {blocks}")));
        assert!(found.iter().any(|problem| problem.starts_with("stages.0.pool_layers: expected")), "{found:?}");
    }
    for key in ["warm_up", "edits_per_step"] {
        let found = problems(&stage(&format!("{key}: 0")));
        assert!(found.iter().any(|problem| problem.starts_with(&format!("stages.0.{key}: expected"))), "{found:?}");
    }
    let found = problems(&stage("positions: []"));
    assert!(found.iter().any(|problem| problem.starts_with("stages.0.positions: expected")), "{found:?}");
    let found = problems(&stage("anchor_weights: {maths: 0, text: 1}"));
    assert!(found.iter().any(|problem| problem.starts_with("stages.0.anchor_weights")), "{found:?}");
    let found = problems(&stage("anchor_weights: {maths: 0}"));
    assert!(found.iter().any(|problem| problem.starts_with("stages.0.anchor_weights.maths: expected")), "{found:?}");
    let found = problems(&stage("interrupted: 3\n    interrupted_weight: 0"));
    assert!(found.iter().any(|problem| problem.starts_with("stages.0.interrupted_weight: expected")), "{found:?}");
    let recipe = parse(&stage("pool_layers: [1, \"3-7\"]")).unwrap();
    assert!(parse(&stage("pool_layers: 5")).is_ok(), "one block, as `layers` takes it");
    let error = stage_layers(&recipe, 6).unwrap_err().to_string();
    assert!(error.starts_with("stages.0.pool_layers: expected blocks below 6"), "{error}");
    assert!(stage_layers(&recipe, 8).is_ok());
}

#[test]
fn keys_of_artefacts_and_weights_belong_to_their_kinds() {
    let found = problems(&SMALL.replace(
        "{kind: noreft}",
        "{kind: noreft, file: v.npy, scale: 2}
    - {kind: imported, knowledge: [adaptive], seeds: 2}
    - {kind: imported, file: v.npy, op: subtract}
    - {kind: quantised, bits: 5}
    - {kind: delta-strip, knowledge: [frozen], bits: 8}
    - {kind: abliteration, search_trials: 0, positions: prompt}
    - {kind: optimal-transport, coefficients: [-1], search_trials: 3}
    - {kind: ablation, joint: true}
    - {kind: optimal-transport}
    - {kind: lora, positions: last}",
    ));
    for expected in [
        "suite.attacks.0.file: this kind of attack has no use for it",
        "suite.attacks.0.scale: this kind of attack has no use for it",
        "suite.attacks.1.file: is missing",
        "suite.attacks.1.knowledge: an artefact that was made elsewhere is never re-fitted",
        "suite.attacks.1.seeds: an artefact is the same every time",
        "suite.attacks.2.op: expected one of `add`, `ablate`, `affine`, `replace`, got `subtract`",
        "suite.attacks.3.bits: expected 8 or 4, got 5",
        "suite.attacks.4.knowledge: weights are changed on the model that is measured",
        "suite.attacks.4.bits: this kind of attack has no use for it",
        "suite.attacks.5.search_trials: expected at least 1, got 0",
        "suite.attacks.5.positions: changed weights act on every token; expected `all`",
        "suite.attacks.6.coefficients.0: expected a number above 0",
        "suite.attacks.6.search_trials: this kind of attack has no use for it",
        "suite.attacks.7.joint: only learned edits and `optimal-transport` have a joint form",
        "suite.attacks.8.coefficients: expected one strength at least, in parts of the way",
        "suite.attacks.9.positions: changed weights act on every token; expected `all`",
    ] {
        assert!(found.iter().any(|p| p.contains(expected)), "{expected}\nin {found:#?}");
    }
    let fine = SMALL.replace("{kind: noreft}", "{kind: imported, file: v.npy}\n    - {kind: quantised, bits: 8}");
    let recipe = parse(&fine).unwrap();
    assert_eq!(recipe.suite.attacks[0].knowledge, [Knowledge::Frozen]);
    assert_eq!(parse(&recipe.show()).unwrap(), recipe);
    let gated = problems(&(fine + "thresholds: {adaptive_asr: {max_worst: 0.5}}\n"));
    assert!(gated[0].starts_with("thresholds.adaptive_asr: bounds attacks of knowledge `adaptive`"), "{gated:#?}");
}

#[test]
fn only_the_hardened_model_is_searched() {
    let row = |keys: &str| parse(&SMALL.replace("{kind: noreft}", &format!("{{kind: noreft, search: {{}}{keys}}}")));
    assert_eq!(row("").unwrap().suite.attacks[0].knowledge, [Knowledge::Adaptive]);
    assert_eq!(row(", knowledge: [adaptive]").unwrap(), row("").unwrap());
    for both in [", knowledge: [frozen]", ", knowledge: [frozen, adaptive]"] {
        let error = row(both).unwrap_err().to_string();
        assert!(error.contains("suite.attacks.0.search: only the hardened model is searched"), "{error}");
    }
    let recipe = row("").unwrap();
    assert_eq!(parse(&recipe.show()).unwrap(), recipe);
}

#[test]
fn settings_of_a_training_are_refused_where_nothing_is_trained() {
    let row = |keys: &str| parse(&SMALL.replace("{kind: noreft}", &format!("{{kind: {keys}}}")));
    for (keys, key) in [
        ("ablation, rank: 4", "rank"),
        ("abliteration, rank: 4", "rank"),
        ("mean-difference, coefficients: [1], steps: 9", "steps"),
        ("subspace-ablation, rank: 4, batch: 2", "batch"),
        ("transferred, source: a/b, of: ablation, learning_rate: 0.1", "learning_rate"),
    ] {
        let error = row(keys).unwrap_err().to_string();
        let expected = format!("suite.attacks.0.{key}: this kind of attack trains nothing and has no use for it");
        assert!(error.contains(&expected), "{keys}: {error}");
    }
    for trained in ["subspace-ablation, rank: 4", "lora, rank: 4, steps: 9", "random, rank: 4, steps: 9, batch: 2"] {
        assert!(row(trained).is_ok(), "{trained}");
    }
    assert!(row("transferred, source: a/b, of: noreft, rank: 4, learning_rate: 0.1").is_ok());
}

#[test]
fn only_what_draws_at_random_is_repeated() {
    let seeds = |row: &str| parse(&SMALL.replace("{kind: noreft}", &format!("{{kind: {row}, seeds: 3}}")));
    for same in [
        "ablation",
        "subspace-ablation",
        "abliteration",
        "mean-difference, coefficients: [1]",
        "principal-component, coefficients: [1]",
        "in-context-vector, coefficients: [1]",
        "iti-heads, coefficients: [1]",
        "optimal-transport, coefficients: [1]",
        "transferred, source: a/b, of: ablation",
        "transferred, source: a/b, of: mean-difference, map: affine",
        "delta-strip",
        "quantised, bits: 8",
        "identity",
    ] {
        let error = seeds(same).unwrap_err().to_string();
        let expected = "suite.attacks.0.seeds: what draws nothing at random is the same every time; expected 1, got 3";
        assert!(error.contains(expected), "{same}: {error}");
    }
    for drawn in [
        "noreft",
        "loreft, search: {}",
        "abliteration, search_trials: 5",
        "transferred, source: a/b, of: noreft",
        "transferred, source: a/b, of: ablation, map: relu",
        "lora",
        "random",
    ] {
        assert!(seeds(drawn).is_ok(), "{drawn}");
    }
}

#[test]
fn what_is_transferred_and_by_whom_is_judged_is_checked() {
    let text = SMALL.replace(
        "{kind: noreft}",
        "{kind: transferred, of: ablation, coefficients: [1], source: 'builtin:tiny-chta'}
    - {kind: transferred, of: lora, source: other}
    - {kind: noreft, map: relu}
    - {kind: transferred}",
    );
    let guarded = text.replace("suite:", "suite:\n  guard: {model: '', frame: best}");
    let found = problems(&guarded).join("\n");
    for expected in [
        "suite.guard: expected one of `template`, `llama-guard-1`, `llama-guard-2`, `llama-guard-3`, `llama-guard-4`, `harmbench`, got `best`",
        "suite.attacks.0.source: expected `builtin:tiny-chat`",
        "suite.attacks.0.coefficients: this kind of attack sweeps no strengths",
        "suite.attacks.1.of: expected a learned edit, `mean-difference` or `ablation`, got `lora`",
        "suite.attacks.2.map: this kind of attack has no use for it",
        "suite.attacks.3.source: is missing",
        "suite.attacks.3.of: is missing",
    ] {
        assert!(found.contains(expected), "{expected:?} not in {found}");
    }
    let fine = SMALL.replace("{kind: noreft}", "{kind: transferred, source: a/b, of: loreft, map: relu}");
    let fine = fine.replace("suite:", "suite:\n  guard: {model: a/b, frame: harmbench}");
    let recipe = parse(&fine).unwrap();
    assert_eq!(parse(&recipe.show()).unwrap(), recipe);
}

#[test]
fn ranges_are_checked_where_types_are_right() {
    let text = SMALL.replace("rank: 3", "rank: 0\n    learning_rate: -1\n    accept_below: 2\n    layers: [\"5-2\"]");
    let found = problems(&text.replace("{kind: noreft}", "{kind: noreft, pairs: 0, search: {seeds: 0}}"));
    for expected in [
        "stages.0.rank: expected at least 1, got 0",
        "stages.0.learning_rate",
        "stages.0.accept_below",
        "stages.0.layers: expected a range that ascends",
        "suite.attacks.0.pairs",
        "suite.attacks.0.search.seeds",
    ] {
        assert!(found.iter().any(|p| p.contains(expected)), "{expected}\nin {found:#?}");
    }
}

#[test]
fn missing_sections_and_empty_lists_are_problems() {
    let found = problems("name: x\n");
    for key in ["schema: is missing", "stages: is missing", "suite: is missing"] {
        assert!(found.iter().any(|p| p == key), "{key}\nin {found:#?}");
    }
    let found = problems("schema: 1\nname: x\nstages: []\nsuite: {attacks: []}\n");
    assert_eq!(found.len(), 2, "{found:#?}");
}

#[test]
fn a_gate_on_rows_that_the_suite_lacks_is_a_problem() {
    let text = SMALL.replace("{kind: noreft}", "{kind: noreft, knowledge: [frozen]}")
        + "thresholds: {adaptive_asr: {max_worst: 0.5}, control_asr: {max: 0.1}}\n";
    let found = problems(&text);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("thresholds.adaptive_asr: bounds attacks of knowledge `adaptive`"), "{found:#?}");
}

#[test]
fn stage_layers_default_to_those_of_the_recipe() {
    let text = format!("layers: [0, 2-3]\n{SMALL}");
    let recipe = parse(&text).unwrap();
    assert_eq!(recipe.stages[0].layers().resolve(6, "layers").unwrap(), [0, 2, 3]);
}

#[test]
fn overrides_come_before_validation_and_say_so_when_wrong() {
    let raw = RawRecipe::parse(SMALL, Path::new("r.yaml")).unwrap();
    let recipe = raw.clone().with_overrides(&["stages.0.rank=5", "match={model_type: llama, max_parameters: 5e6}"]);
    let recipe = recipe.unwrap().validate().unwrap();
    assert_eq!(recipe.matches.unwrap().max_parameters, Some(5_000_000));
    let error = raw.with_overrides(&["stages.0.rank=0"]).unwrap().validate().unwrap_err().to_string();
    assert!(error.contains("stages.0.rank: expected at least 1, got 0 (from --set)"), "{error}");
}

#[test]
fn a_model_finds_its_recipe_by_type_and_size() {
    let name = |model_type, parameters| Recipe::for_model(model_type, parameters).map(|r| r.name);
    assert_eq!(name("llama", Some(1_000_000)).as_deref(), Some("demo"));
    assert_eq!(name("llama", Some(135_000_000)).as_deref(), Some("llama"));
    assert_eq!(Recipe::for_model_type("llama").map(|r| r.name).as_deref(), Some("llama"));
    assert_eq!(name("qwen2", Some(494_000_000)).as_deref(), Some("qwen2"));
    assert_eq!(name("mamba", None), None);
}

#[test]
fn every_family_has_a_recipe() {
    for family in immunise::model::families::names() {
        let recipe = Recipe::for_model_type(family).unwrap_or_else(|| panic!("no recipe for {family}"));
        assert_eq!(recipe.matches.unwrap().model_type, family);
    }
}

#[test]
fn an_unknown_embedded_recipe_lists_the_known_ones() {
    let error = Recipe::embedded("lama").unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let text = error.to_string();
    assert!(text.contains("did you mean `llama`?") && text.contains("`qwen2`"), "{text}");
}

#[test]
fn the_schema_names_every_key_and_stage_kind() {
    let schema = Recipe::schema();
    let shown: serde_json::Value = serde_yaml::from_str(&Recipe::embedded("demo").unwrap().show()).unwrap();
    for key in shown.as_object().unwrap().keys() {
        assert!(schema["properties"].get(key).is_some(), "{key}");
    }
    let text = schema.to_string();
    assert!(STAGE_KINDS.iter().all(|kind| text.contains(&format!("\"const\":\"{kind}\""))), "{text}");
    let required: Vec<_> = schema["required"].as_array().unwrap().iter().filter_map(|v| v.as_str()).collect();
    assert_eq!(required, ["schema", "name", "stages", "suite"]);
}

#[test]
fn a_suite_can_stand_alone() {
    let suite = Suite::parse("attacks: [{kind: ablation, pairs: 40}]\n", Path::new("s.yaml")).unwrap();
    assert_eq!(suite.attacks[0].pairs, 40);
    assert!(Suite::parse("attaks: []\n", Path::new("s.yaml")).unwrap_err().to_string().contains("did you mean"));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "[a-z0-9:\\[\\]{}&*!,\\- \n#'\"|>%@]{0,200}") {
        let _ = parse(&text);
        let _ = parse(&format!("{SMALL}{text}"));
    }
}

#[test]
fn a_task_from_a_file_needs_its_file_and_its_keys_mean_nothing_elsewhere() {
    let recipe = |line: &str| format!("{SMALL}utility:\n  - {line}\n");
    let parsed = parse(&recipe("{task: imported, file: t.yaml, bound: 0.02, metric: acc, chat: true}")).unwrap();
    assert_eq!((parsed.utility[0].metric.as_deref(), parsed.utility[0].chat), (Some("acc"), true));
    assert_eq!(parse(&parsed.show()).unwrap(), parsed);
    assert!(problems(&recipe("{task: imported}"))[0].contains("utility.0.file: is missing"));
    assert!(
        problems(&recipe("{task: maths, chat: true}"))[0].contains("utility.0.chat: only tasks of kind `imported`")
    );
    let two = "{task: imported, file: a.yaml}\n  - {task: imported, file: b.yaml}";
    assert_eq!(parse(&recipe(two)).unwrap().utility.len(), 2);
    assert!(problems(&recipe(&two.replace('b', "a")))[0].contains("is measured twice"));
}

#[test]
fn rates_are_corrected_only_with_a_judge_that_tells_something() {
    let recipe = |se: &str, rates: &str| {
        let suite = format!(
            "suite:\n  calibration: {{sensitivity: {se}, specificity: {{k: 217, n: 220}}, source: own labels}}"
        );
        SMALL.replace("suite:", &suite) + &format!("thresholds: {{rates: {rates}}}\n")
    };
    let good = parse(&recipe("{k: 209, n: 230}", "corrected")).unwrap();
    assert_eq!(parse(&good.show()).unwrap(), good);
    assert!(problems(&recipe("{k: 3, n: 230}", "raw"))[0].contains("sensitivity + specificity above 1, got 0.999"));
    assert!(problems(&recipe("{k: 231, n: 230}", "raw"))[0].contains("expected `k` of `n`"));
    assert!(problems(&recipe("{k: 3, n: 230, z: 1}", "raw"))[0].contains("suite.calibration: "));
    let without = format!("{SMALL}thresholds: {{rates: corrected}}\n");
    assert!(problems(&without)[0].contains("thresholds.rates: asks for corrected rates"));
    let early =
        |rates: &str| recipe("{k: 209, n: 230}", rates).replace("suite:\n", "suite:\n  early_stop: {looks: 2}\n");
    assert!(parse(&early("raw")).is_ok());
    assert!(problems(&early("corrected"))[0].contains("thresholds.rates: expected no `suite.early_stop`"));
}
