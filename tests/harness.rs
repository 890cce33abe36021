//! Task files of lm-evaluation-harness: the same scores as the harness, and refusals of what would be scored otherwise.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Device;
use immunise::Error;
use immunise::checkpoint::Checkpoint;
use immunise::math::float::start_workers;
use immunise::model::Decoder;
use immunise::model::prompt::PromptEncoder;
use immunise::recipe::read_task_file;
use immunise::utility::harness::{HarnessTask, Response};
use immunise::utility::spec::{Task, TaskSpec};
use serde_json::Value;

/// Largest relative difference of a log-likelihood.
const TOLERANCE: f64 = 1e-4;

/// A difference that f32 cannot help: two units in the last place of a logit between 16 and 32, of which log-softmax
/// takes differences. It is beyond [`TOLERANCE`] only where a choice is all but certain, above −0.04 nats.
const ROUNDING: f64 = 2.0 * 16.0 * f32::EPSILON as f64;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn model() -> (Decoder, PromptEncoder) {
    load(&repository("fixtures/tiny-chat"))
}

fn load(dir: &Path) -> (Decoder, PromptEncoder) {
    start_workers(None);
    let decoder = Decoder::load(&Checkpoint::open(dir).unwrap(), &Device::Cpu).unwrap();
    (decoder, PromptEncoder::open(dir).unwrap())
}

fn open(path: &Path, spec: &TaskSpec) -> immunise::Result<HarnessTask> {
    HarnessTask::open(read_task_file(path)?, spec)
}

fn imported() -> TaskSpec {
    TaskSpec::new(Task::Imported)
}

/// `tests/interop/harness.py` makes the golden files.
#[test]
fn every_score_is_the_harness_s() {
    compare(&model(), "harness.json", 5);
}

/// Real tokenizers merge across the border between context and choice. `IMMUNISE_MODELS` names a folder with the models of
/// `tests/real_models.rs`.
#[test]
#[ignore = "needs IMMUNISE_MODELS"]
fn every_score_of_a_real_model_is_the_harness_s() {
    let models = std::env::var_os("IMMUNISE_MODELS").expect("IMMUNISE_MODELS names a folder of models");
    compare(&load(&Path::new(&models).join("smollm2")), "harness_smollm2.json", 3);
}

fn compare((decoder, encoder): &(Decoder, PromptEncoder), golden: &str, files: usize) {
    let golden = fs::read_to_string(repository("tests/interop").join(golden)).unwrap();
    let golden: Value = serde_json::from_str(&golden).unwrap();
    let tasks = golden["tasks"].as_array().unwrap();
    assert_eq!(tasks.len(), files);
    for expected in tasks {
        let file = expected["file"].as_str().unwrap();
        let spec = TaskSpec { chat: expected["chat"].as_bool().unwrap(), ..imported() };
        let task = open(&repository(file), &spec).unwrap();
        let got = task.evaluate(decoder, encoder).unwrap();
        let questions = expected["questions"].as_array().unwrap();
        assert_eq!(got.responses.len(), questions.len(), "{file}");
        let (mut worst, mut rounding) = (0.0_f64, 0.0_f64);
        for (i, (response, question)) in got.responses.iter().zip(questions).enumerate() {
            match response {
                Response::Text(answer) => assert_eq!(answer, question["answer"].as_str().unwrap(), "{file} {i}"),
                Response::Choices(choices) => {
                    assert_eq!(choices.len(), question["choices"].as_array().unwrap().len());
                    for (j, choice) in choices.iter().enumerate() {
                        let nats = question["choices"][j][0].as_f64().unwrap();
                        let difference = (choice.nats - nats).abs();
                        match difference <= ROUNDING {
                            true => rounding = rounding.max(difference),
                            false => worst = worst.max(difference / nats.abs()),
                        }
                        assert_eq!(choice.greedy, question["choices"][j][1].as_bool().unwrap(), "{file} {i} {j}");
                    }
                }
            }
        }
        println!(
            "{file}: {} questions, largest relative difference {worst:.1e}, within rounding {rounding:.1e} nats",
            questions.len()
        );
        assert!(worst <= TOLERANCE, "{file}: {worst}");
        for (row, outcomes) in task.rows().iter().zip(&got.outcomes) {
            let metric = row.split_once(' ').unwrap().1;
            let name =
                if metric.starts_with("acc") { format!("{metric},none") } else { format!("exact_match,{metric}") };
            let rate = outcomes.iter().filter(|right| **right).count() as f64 / outcomes.len() as f64;
            let reference = expected["metrics"][&name].as_f64().unwrap_or_else(|| panic!("{file}: no {name}"));
            assert!((rate - reference).abs() < 1e-9, "{file} {name}: expected {reference}, got {rate}");
        }
        assert_eq!(task.rows().len(), expected["metrics"].as_object().unwrap().len(), "{file}");
    }
}

#[test]
fn rows_are_paired_and_carry_bound_and_digest() {
    let (decoder, encoder) = model();
    let spec = TaskSpec { items: Some(20), bound: Some(0.05), metric: Some("acc_norm".into()), ..imported() };
    let task = open(&repository("examples/tasks/arithmetic.yaml"), &spec).unwrap();
    let rows = task.measure(Some(&decoder), &decoder, &encoder).unwrap();
    let seen: Vec<_> = rows.iter().map(|row| (row.task.as_str(), row.bound, row.hardened.n)).collect();
    assert_eq!(seen, [("arithmetic acc", None, 20), ("arithmetic acc_norm", Some(0.05), 20)]);
    for row in &rows {
        let delta = row.delta.unwrap();
        assert_eq!((row.base, delta.value, row.digest.as_deref()), (Some(row.hardened), 0.0, Some(task.digest())));
        assert!(delta.low < 0.0 && delta.high > 0.0, "twenty equal answers leave a doubt");
    }
    let alone = task.measure(None, &decoder, &encoder).unwrap();
    assert_eq!((alone[0].base, alone[0].delta, alone[0].hardened), (None, None, rows[0].hardened));
}

/// A task file and its data in a folder of their own.
struct Files(tempfile::TempDir);

impl Files {
    fn new(task: &str, data: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("task.yaml"), task).unwrap();
        fs::write(folder.path().join("data.jsonl"), data).unwrap();
        Self(folder)
    }

    fn open(&self) -> immunise::Result<HarnessTask> {
        open(&self.0.path().join("task.yaml"), &imported())
    }

    fn refused(&self) -> (String, u8) {
        let error = self.open().unwrap_err();
        (error.to_string(), error.exit_code())
    }
}

const CHOICE: &str = "task: t
output_type: multiple_choice
dataset_path: json
dataset_kwargs: {data_files: {test: data.jsonl}}
test_split: test
doc_to_text: '{{q}}'
doc_to_choice: [a, b]
doc_to_target: gold
";

const GENERATION: &str = "task: t
dataset_path: json
dataset_kwargs: {data_files: {test: data.jsonl}}
test_split: test
doc_to_text: q
doc_to_target: gold
";

#[test]
fn what_would_change_the_score_is_refused_by_its_key() {
    let cases = [
        (CHOICE, "process_docs: !function utils.docs", "task.yaml", "tags such as `!name`"),
        (CHOICE, "process_docs: utils.docs", "process_docs", "Python code is never run"),
        (CHOICE, "process_results: x", "process_results", "Python code is never run"),
        (CHOICE, "use_prompt: x", "use_prompt", "is not supported"),
        (CHOICE, "gen_prefix: x", "gen_prefix", "is not supported"),
        (CHOICE, "repeats: 3", "repeats", "expected `1`, got `3`"),
        (CHOICE, "dataset_name: main", "dataset_name", "expected nothing, got `main`"),
        (CHOICE, "num_fewshot: 2", "fewshot_config.sampler", "expected `first_n`, got `default`"),
        (CHOICE, "num_fewshots: 2", "num_fewshots", "did you mean `num_fewshot`?"),
        (CHOICE, "filter_list: [{name: x, filter: []}]", "filter_list", "is not supported"),
        (CHOICE, "metric_list: [{metric: f1}]", "metric_list.0.metric", "expected one of `acc`"),
        (CHOICE, "metric_list: [{metric: acc, aggregation: median}]", "metric_list.0.aggregation", "expected `mean`"),
        (CHOICE, "metric_list: [{metric: acc, ignore_case: true}]", "metric_list.0.ignore_case", "unknown key"),
        (CHOICE, "fewshot_config: {doc_to_text: x}", "fewshot_config.doc_to_text", "unknown key"),
        (GENERATION, "doc_to_choice: [a, b]", "doc_to_choice", "is not supported"),
        (GENERATION, "output_type: loglikelihood", "output_type", "expected `multiple_choice` or `generate_until`"),
        (GENERATION, "generation_kwargs: {do_sample: true}", "generation_kwargs.do_sample", "expected `false`"),
        (GENERATION, "generation_kwargs: {temperature: 0.7}", "generation_kwargs.temperature", "expected 0, got 0.7"),
        (GENERATION, "generation_kwargs: {top_p: 0.7}", "generation_kwargs.top_p", "unknown key"),
        (GENERATION, "metric_list: [{metric: bleu}]", "metric_list", "expected `exact_match` alone"),
        (
            GENERATION,
            "metric_list: [{metric: exact_match, regexes_to_ignore: ['(']}]",
            "metric_list.0.regexes_to_ignore.0",
            "expected a regular expression",
        ),
        (
            GENERATION,
            "filter_list: [{name: x, filter: [{function: majority_vote}, {function: take_first}]}]",
            "filter_list.0.filter.0.function",
            "got `majority_vote`",
        ),
        (
            GENERATION,
            "filter_list: [{name: x, filter: [{function: lowercase}]}]",
            "filter_list.0.filter",
            "`take_first`",
        ),
    ];
    for (task, line, key, problem) in cases {
        let (error, code) = Files::new(&format!("{task}{line}\n"), "{}").refused();
        assert!(error.contains(key) && error.contains(problem) && error.contains("task.yaml"), "{line}: {error}");
        assert_eq!(code, 2, "{error}");
    }
    for key in ["task_alias: T", "tag: [x]", "metadata: {version: 2}", "should_decontaminate: false", "repeats: 1"] {
        let files = Files::new(&format!("{CHOICE}{key}\n"), "{\"q\": \"x\", \"gold\": 1}\n");
        assert!(files.open().is_ok(), "{key}");
    }
}

#[test]
fn all_problems_of_a_file_are_told_at_once() {
    let task = "task: t\noutput_type: multiple_choice\ndataset_path: org/set\ndoc_to_text: q\n";
    match Files::new(task, "").open() {
        Err(Error::Recipe { problems, .. }) => {
            let all = problems.join("\n");
            for part in [
                "dataset_path: expected `json`",
                "dataset_kwargs: is missing",
                "doc_to_target: is missing",
                "doc_to_choice: ",
            ] {
                assert!(all.contains(part), "{all}");
            }
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_question_that_cannot_be_asked_is_named_by_its_line() {
    let cases = [
        (CHOICE, "{\"gold\": 1}", "line 1: doc_to_text: ", "undefined"),
        (CHOICE, "{\"q\": \"x\", \"gold\": 2}", "line 1: doc_to_target: ", "one of 2 choices, got 2"),
        (CHOICE, "{\"q\": \"x\", \"gold\": \"c\"}", "line 1: doc_to_target: ", "got `c`"),
        (CHOICE, "{\"q\": \"x\", \"gold\": [0, 1]}", "line 1: doc_to_target: ", "index or text of one choice"),
        (CHOICE, "{\"q\": \"7\", \"gold\": 0}", "line 1: doc_to_text: ", "several contexts"),
        (CHOICE, "{\"q\": \"x\", \"gold\": 0}\n\n[]", "line 3: ", "expected a JSON object"),
        (CHOICE, "", "expected one question at least", ""),
        (GENERATION, "{\"q\": \"x\", \"gold\": {}}", "line 1: doc_to_target: ", "got a map"),
        (GENERATION, "{\"q\": \"x\", \"gold\": \"y\"}\n{\"q\": \"x\"}", "line 2: doc_to_target: ", "`gold` is missing"),
    ];
    for (task, data, place, problem) in cases {
        let (error, code) = Files::new(task, data).refused();
        assert!(error.contains("data.jsonl") && error.contains(place) && error.contains(problem), "{data}: {error}");
        assert_eq!(code, 3, "{error}");
    }
}

#[test]
fn a_gate_on_a_metric_that_the_task_lacks_is_refused() {
    let spec = TaskSpec { metric: Some("exact_match".into()), ..imported() };
    let error = open(&repository("examples/tasks/arithmetic.yaml"), &spec).unwrap_err();
    assert!(error.to_string().contains("has no metric `exact_match`") && error.exit_code() == 2, "{error}");
}

#[test]
fn a_long_question_loses_its_beginning() {
    let (decoder, encoder) = model();
    let scores = |words: usize| {
        let data = format!("{{\"q\": \"{}\", \"gold\": 1}}\n", ["the"; 400][..words].join(" "));
        let task = Files::new(CHOICE, &data).open().unwrap();
        task.evaluate(&decoder, &encoder).unwrap().responses
    };
    // The choice is one token, so the model is fed the question alone: as many tokens as it has positions.
    let positions = decoder.blueprint().positions();
    assert!(positions < 400);
    assert_eq!(scores(400), scores(positions));
    assert_ne!(scores(positions), scores(positions / 2), "nothing is cut");
}

#[test]
fn what_no_model_of_that_size_can_do_is_told_beforehand() {
    let encoder = PromptEncoder::open(&repository("fixtures/tiny-chat")).unwrap();
    let checked = |task: &str, data: &str, positions| {
        let files = Files::new(task, &format!("{data}\n"));
        files.open().unwrap().check(&encoder, positions)
    };
    let asked = r#"{"q": "what", "gold": "1"}"#;
    let long = CHOICE.replace("[a, b]", "[the the the the the, b]");
    let slow =
        format!("{GENERATION}metric_list: [{{metric: exact_match, regexes_to_ignore: ['(a|b|ab)*(?=c)\\1d']}}]\n");
    let unread = format!(r#"{{"q": "what", "gold": "{}c"}}"#, "ab".repeat(40));
    let cases = [
        (GENERATION, asked, 256, "max_gen_toks: expected less than the model's 256 positions, got 256"),
        (&long, r#"{"q": "what", "gold": 0}"#, 4, "up to 4 tokens of a choice after it"),
        (&slow, &unread, 300, "pattern `(a|b|ab)*"),
    ];
    for (task, data, positions, problem) in cases {
        let error = checked(task, data, positions).unwrap_err();
        assert!(error.to_string().contains(problem) && error.exit_code() == 3, "{error}");
    }
    checked(GENERATION, asked, 257).unwrap();
    checked(&slow, asked, 300).unwrap();
    checked(&long, r#"{"q": "what", "gold": 0}"#, 5).unwrap();
}

#[test]
fn a_question_without_a_token_is_told_beforehand() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["tokenizer_config.json", "chat_template.jinja"] {
        fs::copy(repository("fixtures/tiny-chat").join(file), folder.path().join(file)).unwrap();
    }
    let text = fs::read_to_string(repository("fixtures/tiny-chat/tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    // Without it no BOS comes before a text.
    tokenizer["post_processor"] = Value::Null;
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let encoder = PromptEncoder::open(folder.path()).unwrap();
    let checked = |question: &str| {
        let files = Files::new(GENERATION, &format!("{{\"q\": \"{question}\", \"gold\": \"1\"}}\n"));
        files.open().unwrap().check(&encoder, 300)
    };
    checked("what").unwrap();
    let error = checked("").unwrap_err();
    assert!(error.to_string().contains("doc_to_text: expected a question, got an empty text"), "{error}");
}

#[test]
fn questions_that_are_not_asked_are_not_rendered() {
    let files = Files::new(CHOICE, "{\"gold\": 1}\n{\"q\": \"x\", \"gold\": 1}\n");
    let path = files.0.path().join("task.yaml");
    assert!(open(&path, &TaskSpec { items: Some(1), ..imported() }).is_ok(), "the first has no text");
    assert!(open(&path, &imported()).is_err());
}

#[test]
fn solved_examples_in_the_chat_template_are_refused() {
    let task = repository("tests/interop/harness/capitals.yaml");
    let error = open(&task, &TaskSpec { chat: true, ..imported() }).unwrap_err();
    assert!(error.to_string().contains("`chat` with solved examples") && error.exit_code() == 2, "{error}");
}

#[test]
fn gsm8k_reads_any_set_of_its_form() {
    let data =
        "{\"question\": \"Ada has 3 apples and buys 4. How many?\", \"answer\": \"3 + 4 = 7\\n#### 7\"}\n".repeat(7);
    let data =
        data.lines().enumerate().map(|(i, line)| line.replace("Ada", &format!("Ada {i}")) + "\n").collect::<String>();
    let folder = tempfile::tempdir().unwrap();
    let task = folder.path().join("gsm8k.yaml");
    fs::copy(repository("examples/tasks/gsm8k.yaml"), &task).unwrap();
    fs::write(folder.path().join("gsm8k_train.jsonl"), &data).unwrap();
    fs::write(folder.path().join("test.jsonl"), &data).unwrap();
    let spec = TaskSpec { data: Some(folder.path().join("test.jsonl")), ..imported() };
    let task = open(&task, &spec).unwrap();
    assert_eq!(task.rows(), ["gsm8k strict-match", "gsm8k flexible-extract"]);
}
