//! Task files of lm-evaluation-harness: which of their keys mean something here, and which cannot be kept.
//!
//! A key that could change the score and is not supported is a problem; what only describes the task is passed over. Paths
//! are relative to the task file's folder, where the harness is to be run.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::fields::{Problems, Section, join, show};
use super::raw::RawRecipe;
use crate::checkpoint::Digest;
use crate::error::Result;
use crate::utility::harness::filter::{ExactMatch, Filter, Step};
use crate::utility::harness::pattern::Pattern;
use crate::utility::harness::{ChoiceMetric, Choices, NO_FILTER, Scoring, Shots, Target, TaskFile};

/// Keys that describe a task and cannot change its score.
const DESCRIPTIONS: [&str; 5] =
    ["task_alias", "tag", "metadata", "should_decontaminate", "doc_to_decontamination_query"];

/// Keys of the harness that are not supported, and why.
const UNSUPPORTED: [(&str, &str); 12] = [
    ("process_docs", "Python code is never run"),
    ("process_results", "Python code is never run"),
    ("custom_dataset", "Python code is never run"),
    ("unsafe_code", "code that a model writes is never run"),
    ("use_prompt", "prompts come from `doc_to_text`"),
    ("gen_prefix", "the beginning of an answer is not given here"),
    ("doc_to_image", "models read text only"),
    ("doc_to_audio", "models read text only"),
    ("include", "write the task in one file"),
    ("group", "a file holds one task"),
    ("class", "Python code is never run"),
    ("model_args", "the model is the recipe's"),
];

/// Longest answer where the task does not say, tokens.
const MAX_GEN_TOKS: usize = 256;

/// Reads a task file.
///
/// # Errors
/// [`crate::Error::Io`]; [`crate::Error::Recipe`] with every problem, each with its key.
pub fn read_task_file(path: &Path) -> Result<TaskFile> {
    let raw = RawRecipe::load(path)?;
    let mut problems = Problems::default();
    let digest = Digest::of_file(path)?;
    let task = read(&raw.value, path, digest, &mut problems);
    raw.finish(task, problems)
}

fn read(value: &Value, path: &Path, digest: Digest, problems: &mut Problems) -> Option<TaskFile> {
    let mut top = Section::open(String::new(), value, problems)?;
    for key in DESCRIPTIONS {
        top.take(key);
    }
    for (key, why) in UNSUPPORTED {
        if top.take(key).is_some_and(|value| *value != Value::Bool(false)) {
            problems.add(key, format!("is not supported: {why}"));
        }
    }
    let name = top.required::<String>("task", problems);
    if let Some(name) =
        name.as_ref().filter(|name| name.is_empty() || name.len() > 64 || name.contains(char::is_control))
    {
        problems.add("task", format!("expected a name of up to 64 characters, got `{name}`"));
    }
    only(&mut top, "repeats", &Value::from(1), problems);
    let data = Data::read(&mut top, path, problems);
    let text = top.required::<String>("doc_to_text", problems);
    let target = read_target(&mut top, problems);
    let description = top.field::<String>("description", problems).unwrap_or_default();
    let target_delimiter = top.field::<String>("target_delimiter", problems).unwrap_or_else(|| " ".into());
    let fewshot_delimiter = top.field::<String>("fewshot_delimiter", problems).unwrap_or_else(|| "\n\n".into());
    let shots = read_shots(&mut top, data.as_ref(), problems);
    let scoring = read_scoring(&mut top, &fewshot_delimiter, problems);
    top.close(problems);
    if let (Some(Target::Index(_)), Some(Scoring::Generation { .. })) = (&target, &scoring) {
        problems.add("doc_to_target", "expected a field or template, got a number");
    }
    Some(TaskFile {
        name: name?,
        path: path.into(),
        digest,
        documents: data?.measured,
        shots: shots?,
        description,
        text: text?,
        target: target?,
        target_delimiter,
        fewshot_delimiter,
        scoring: scoring?,
    })
}

/// A key that may only have the value that it has when it is absent.
fn only(section: &mut Section<'_>, key: &str, value: &Value, problems: &mut Problems) {
    if let Some(other) = section.take(key).filter(|other| *other != value) {
        problems.add(section.key(key), format!("is not supported: expected {}, got {}", show(value), show(other)));
    }
}

/// Where the questions lie.
struct Data {
    splits: Map<String, Value>,
    folder: PathBuf,
    measured: PathBuf,
    fewshot: Option<String>,
}

impl Data {
    fn read(top: &mut Section<'_>, path: &Path, problems: &mut Problems) -> Option<Self> {
        if let Some(kind) = top.required::<String>("dataset_path", problems).filter(|kind| kind != "json") {
            let text = format!("expected `json` with `dataset_kwargs.data_files`, got `{kind}`: nothing is downloaded");
            problems.add("dataset_path", text);
        }
        only(top, "dataset_name", &Value::Null, problems);
        top.take("training_split");
        let test = top.field::<String>("test_split", problems);
        let validation = top.field::<String>("validation_split", problems);
        let fewshot = top.field::<String>("fewshot_split", problems);
        let splits = Self::splits(top, problems);
        let Some(split) = test.or(validation) else {
            problems.add("test_split", "is missing");
            return None;
        };
        let mut data = Self {
            splits: splits?,
            folder: path.parent().unwrap_or(Path::new("")).into(),
            measured: PathBuf::new(),
            fewshot,
        };
        data.measured = data.file(&split, "test_split", problems)?;
        Some(data)
    }

    fn splits(top: &mut Section<'_>, problems: &mut Problems) -> Option<Map<String, Value>> {
        let Some(value) = top.take("dataset_kwargs") else {
            problems.add("dataset_kwargs", "is missing: `{data_files: {test: FILE.jsonl}}` names the data");
            return None;
        };
        let mut section = Section::open("dataset_kwargs".into(), value, problems)?;
        let files = section.take("data_files").cloned();
        section.close(problems);
        match files {
            // One file without a name is the split `train` to the harness.
            Some(Value::String(file)) => Some(Map::from_iter([("train".to_owned(), Value::String(file))])),
            Some(Value::Object(splits)) => Some(splits),
            other => {
                let got = show(other.as_ref().unwrap_or(&Value::Null));
                problems.add("dataset_kwargs.data_files", format!("expected a file, or files by split, got {got}"));
                None
            }
        }
    }

    /// The file of a split.
    fn file(&self, split: &str, key: &str, problems: &mut Problems) -> Option<PathBuf> {
        match self.splits.get(split) {
            Some(Value::String(file)) if !file.contains("://") && !file.contains('*') => Some(self.folder.join(file)),
            Some(other) => {
                let text = format!("expected the path of one JSONL file, got {}", show(other));
                problems.add(join("dataset_kwargs.data_files", split), text);
                None
            }
            None => {
                let known: Vec<String> = self.splits.keys().map(|name| format!("`{name}`")).collect();
                let text = format!("`dataset_kwargs.data_files` has no `{split}`; it has {}", known.join(", "));
                problems.add(key, text);
                None
            }
        }
    }
}

fn read_target(top: &mut Section<'_>, problems: &mut Problems) -> Option<Target> {
    match top.take("doc_to_target") {
        Some(Value::String(source)) => Some(Target::Source(source.clone())),
        Some(Value::Number(index)) if index.is_u64() => Some(Target::Index(usize::try_from(index.as_u64()?).ok()?)),
        Some(other) => {
            problems.add("doc_to_target", format!("expected a field, a template or an index, got {}", show(other)));
            None
        }
        None => {
            problems.add("doc_to_target", "is missing");
            None
        }
    }
}

fn read_shots(top: &mut Section<'_>, data: Option<&Data>, problems: &mut Problems) -> Option<Shots> {
    let count = top.field::<usize>("num_fewshot", problems).unwrap_or(0);
    let (mut sampler, mut samples, mut split) = (None, None, data.and_then(|data| data.fewshot.clone()));
    if let Some(value) = top.take("fewshot_config") {
        let mut section = Section::open("fewshot_config".into(), value, problems)?;
        sampler = section.field::<String>("sampler", problems);
        samples = section.field::<Vec<Map<String, Value>>>("samples", problems);
        split = section.field::<String>("split", problems).or(split);
        section.close(problems);
    }
    if count == 0 {
        return Some(Shots::None);
    }
    if sampler.as_deref() != Some("first_n") {
        problems.add(
            "fewshot_config.sampler",
            format!(
                "expected `first_n`, got `{}`: examples drawn at random depend on Python's generator",
                sampler.as_deref().unwrap_or("default")
            ),
        );
    }
    match (split, samples) {
        (Some(split), _) => Some(Shots::Of(count, data?.file(&split, "fewshot_split", problems)?)),
        (None, Some(samples)) if samples.len() >= count => {
            Some(Shots::Listed(samples.into_iter().take(count).collect()))
        }
        (None, samples) => {
            let text = match samples {
                Some(samples) => {
                    format!("expected at most the {} of `fewshot_config.samples`, got {count}", samples.len())
                }
                None => format!("asks for {count} examples: `fewshot_split` or `fewshot_config.samples` is missing"),
            };
            problems.add("num_fewshot", text);
            None
        }
    }
}

fn read_scoring(top: &mut Section<'_>, delimiter: &str, problems: &mut Problems) -> Option<Scoring> {
    let kind = top.field::<String>("output_type", problems).unwrap_or_else(|| "generate_until".into());
    match kind.as_str() {
        "multiple_choice" => {
            let choices = read_choices(top, problems);
            for key in ["generation_kwargs", "filter_list"] {
                only(top, key, &Value::Null, problems);
            }
            let metrics = read_choice_metrics(top, problems);
            Some(Scoring::Choice { choices: choices?, metrics: metrics? })
        }
        "generate_until" => {
            only(top, "doc_to_choice", &Value::Null, problems);
            let generation = read_generation(top, delimiter, problems);
            let filters = read_filters(top, problems);
            let exact = read_exact(top, problems);
            let (until, max_new_tokens) = generation?;
            Some(Scoring::Generation { until, max_new_tokens, filters: filters?, exact: exact? })
        }
        other => {
            for key in ["doc_to_choice", "generation_kwargs", "filter_list", "metric_list"] {
                top.take(key);
            }
            problems.add("output_type", format!("expected `multiple_choice` or `generate_until`, got `{other}`"));
            None
        }
    }
}

fn read_choices(top: &mut Section<'_>, problems: &mut Problems) -> Option<Choices> {
    let texts = |items: Vec<&Value>| -> Option<Choices> {
        items.into_iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>().map(Choices::Listed)
    };
    let value = top.take("doc_to_choice");
    let choices = match value {
        Some(Value::String(source)) => Some(Choices::Source(source.clone())),
        Some(Value::Array(items)) => texts(items.iter().collect()),
        Some(Value::Object(items)) => texts(items.values().collect()),
        _ => None,
    };
    if choices.is_none() {
        let got = show(value.unwrap_or(&Value::Null));
        problems.add("doc_to_choice", format!("expected a list of texts, a field or a template, got {got}"));
    }
    choices
}

/// The metrics of `metric_list`, each opened as a section with its name; `defaults` where there is none.
fn metrics<'v>(
    top: &mut Section<'v>,
    defaults: &[&str],
    problems: &mut Problems,
) -> Option<Vec<(String, Option<Section<'v>>)>> {
    let Some(value) = top.take("metric_list") else {
        return Some(defaults.iter().map(|name| ((*name).to_owned(), None)).collect());
    };
    let Some(items) = value.as_array().filter(|items| !items.is_empty()) else {
        problems.add("metric_list", format!("expected a list of one metric at least, got {}", show(value)));
        return None;
    };
    let read = items.iter().enumerate().map(|(i, item)| {
        let mut section = Section::open(join("metric_list", i), item, problems)?;
        let name = section.required::<String>("metric", problems)?;
        only(&mut section, "aggregation", &Value::from("mean"), problems);
        only(&mut section, "higher_is_better", &Value::from(true), problems);
        only(&mut section, "hf_evaluate", &Value::from(false), problems);
        Some((name, Some(section)))
    });
    let read: Vec<_> = read.collect();
    read.into_iter().collect()
}

fn read_choice_metrics(top: &mut Section<'_>, problems: &mut Problems) -> Option<Vec<ChoiceMetric>> {
    let mut known = vec![];
    for (i, (name, section)) in metrics(top, &["acc", "acc_norm"], problems)?.into_iter().enumerate() {
        let metric = ChoiceMetric::ALL.iter().find(|(known, _)| *known == name).map(|(_, metric)| *metric);
        match metric.filter(|metric| !known.contains(metric)) {
            Some(metric) => known.push(metric),
            None => problems.add(
                join(&join("metric_list", i), "metric"),
                format!("expected one of `acc`, `acc_norm`, `acc_bytes`, each once, got `{name}`"),
            ),
        }
        if let Some(section) = section {
            section.close(problems);
        }
    }
    Some(known)
}

fn read_exact(top: &mut Section<'_>, problems: &mut Problems) -> Option<ExactMatch> {
    let mut listed = metrics(top, &["exact_match"], problems)?;
    if listed.len() != 1 || listed[0].0 != "exact_match" {
        let names: Vec<String> = listed.iter().map(|(name, _)| format!("`{name}`")).collect();
        problems.add("metric_list", format!("expected `exact_match` alone, got {}", names.join(", ")));
        return None;
    }
    let Some(mut section) = listed.remove(0).1 else { return Some(ExactMatch::default()) };
    let patterns = section.field::<Vec<String>>("regexes_to_ignore", problems).unwrap_or_default();
    let at = section.key("regexes_to_ignore");
    let patterns: Vec<Option<Pattern>> =
        patterns.iter().enumerate().map(|(i, text)| read_pattern(join(&at, i), text, problems)).collect();
    let mut flag = |key: &str| section.field::<bool>(key, problems).unwrap_or(false);
    let exact = ExactMatch {
        ignore_case: flag("ignore_case"),
        ignore_punctuation: flag("ignore_punctuation"),
        ignore_numbers: flag("ignore_numbers"),
        regexes_to_ignore: patterns.into_iter().collect::<Option<_>>()?,
    };
    section.close(problems);
    Some(exact)
}

fn read_pattern(key: String, text: &str, problems: &mut Problems) -> Option<Pattern> {
    Pattern::new(text).map_err(|error| problems.add(key, format!("expected a regular expression, got `{error}`"))).ok()
}

/// `until` and the longest answer.
fn read_generation(top: &mut Section<'_>, delimiter: &str, problems: &mut Problems) -> Option<(Vec<String>, usize)> {
    let Some(value) = top.take("generation_kwargs") else { return Some((vec![delimiter.to_owned()], MAX_GEN_TOKS)) };
    let mut section = Section::open("generation_kwargs".into(), value, problems)?;
    let until = match section.take("until") {
        None => vec![delimiter.to_owned()],
        Some(Value::String(text)) => vec![text.clone()],
        Some(value) => super::fields::parse(section.key("until"), value, problems)?,
    };
    only(&mut section, "do_sample", &Value::from(false), problems);
    if let Some(temperature) = section.field::<f64>("temperature", problems).filter(|t| *t != 0.0) {
        problems.add(section.key("temperature"), format!("is not supported: expected 0, got {temperature}"));
    }
    // In the harness's order: the first that is given counts.
    let names = ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"];
    let given: Vec<usize> = names.iter().filter_map(|key| section.field::<usize>(key, problems)).collect();
    let longest = given.first().copied().unwrap_or(MAX_GEN_TOKS);
    problems.count("generation_kwargs", "max_gen_toks", longest, 1, 65_536);
    section.close(problems);
    Some((until, longest))
}

fn read_filters(top: &mut Section<'_>, problems: &mut Problems) -> Option<Vec<Filter>> {
    let Some(value) = top.take("filter_list") else {
        return Some(vec![Filter { name: NO_FILTER.into(), steps: vec![] }]);
    };
    let Some(items) = value.as_array().filter(|items| !items.is_empty()) else {
        problems.add("filter_list", format!("expected a list of one filter at least, got {}", show(value)));
        return None;
    };
    let mut filters: Vec<Filter> = vec![];
    for (i, item) in items.iter().enumerate() {
        let mut section = Section::open(join("filter_list", i), item, problems)?;
        let name = section.required::<String>("name", problems);
        let steps = section.required::<Vec<Value>>("filter", problems);
        let at = section.key("filter");
        section.close(problems);
        let steps = read_steps(&at, &steps?, problems);
        let name = name?;
        if filters.iter().any(|filter| filter.name == name) {
            problems.add(join(&join("filter_list", i), "name"), format!("`{name}` is given twice"));
        }
        filters.push(Filter { name, steps: steps? });
    }
    Some(filters)
}

/// The steps of one filter; they end in `take_first`, which has nothing to do for one answer.
fn read_steps(at: &str, steps: &[Value], problems: &mut Problems) -> Option<Vec<Step>> {
    let mut read = vec![];
    let mut taken = false;
    for (i, value) in steps.iter().enumerate() {
        let mut section = Section::open(join(at, i), value, problems)?;
        let function = section.required::<String>("function", problems)?;
        if taken {
            problems.add(section.path(), "is not supported after `take_first`");
        }
        match function.as_str() {
            "regex" => read.push(read_regex(&mut section, problems)),
            "remove_whitespace" => read.push(Some(Step::RemoveWhitespace)),
            "lowercase" => read.push(Some(Step::Lowercase)),
            "uppercase" => read.push(Some(Step::Uppercase)),
            "take_first" => taken = true,
            other => problems.add(
                section.key("function"),
                format!(
                    "expected one of `regex`, `remove_whitespace`, `lowercase`, `uppercase`, `take_first`, got `{other}`"
                ),
            ),
        }
        section.close(problems);
    }
    if !taken {
        problems.add(at, "expected `take_first` as the last step");
    }
    read.into_iter().collect()
}

fn read_regex(section: &mut Section<'_>, problems: &mut Problems) -> Option<Step> {
    let text = section.field::<String>("regex_pattern", problems).unwrap_or_else(|| r"#### (\-?[0-9\.\,]+)".into());
    let select = section.field::<i64>("group_select", problems).unwrap_or(0);
    let fallback = section.field::<String>("fallback", problems).unwrap_or_else(|| "[invalid]".into());
    let pattern = read_pattern(section.key("regex_pattern"), &text, problems)?;
    Some(Step::Regex { pattern, select, fallback })
}
