//! From raw text to a valid recipe, reporting every problem and not only the first.

use serde_json::Value;

use super::fields::{Problems, Section, join, parse, show};
use super::raw::RawRecipe;
use super::stage::{STAGE_KINDS, Stage};
use super::suggest::did_you_mean;
use super::{Data, EarlyStop, Match, Recipe, SCHEMA_VERSION, Suite};
use crate::attack::spec::{Allowance, AttackKind, AttackSpec, Knowledge, Method, Search};
use crate::error::{Error, Result};
use crate::intervention::{Layers, Positions};
use crate::judge::guard::GuardSpec;
use crate::report::{AsrBound, Calibration, Rates, Thresholds};
use crate::utility::spec::{Task, TaskSpec};

/// Prompt sets inside the binary.
const BUILTIN_PROMPTS: [&str; 2] = ["builtin:tiny-chat", "builtin:prompts"];

/// Models inside the binary.
const BUILTIN_MODELS: [&str; 1] = ["builtin:tiny-chat"];

pub(super) const MAX_RANK: usize = 65_536;
pub(super) const MAX_COUNT: usize = 10_000_000;
/// Cells of a suite, at most, and repetitions of anything: nobody measures more, and they are all laid out before the first.
pub const MAX_CELLS: usize = 10_000;
/// Validation prompts of a suite unless it says otherwise.
const VALIDATION_PROMPTS: usize = 96;

impl RawRecipe {
    /// Checks everything that can be checked without the model.
    ///
    /// # Errors
    /// [`Error::Recipe`] with every problem, section by section.
    pub fn validate(&self) -> Result<Recipe> {
        let mut problems = Problems::default();
        let recipe = read(&self.value, &mut problems);
        self.finish(recipe, problems)
    }

    /// Checks the text as a suite on its own.
    pub(super) fn validate_suite(&self) -> Result<Suite> {
        let mut problems = Problems::default();
        let suite = read_suite(String::new(), &self.value, &mut problems);
        self.finish(suite, problems)
    }

    pub(super) fn finish<T>(&self, value: Option<T>, problems: Problems) -> Result<T> {
        match value {
            Some(value) if problems.0.is_empty() => Ok(value),
            _ => {
                let place = |(key, text): &(String, String)| format!("{key}: {text}{}", self.place(key));
                let mut listed: Vec<String> = problems.0.iter().map(place).collect();
                if listed.is_empty() {
                    listed.push("could not be read".into());
                }
                Err(Error::Recipe { path: self.path.clone(), problems: listed })
            }
        }
    }
}

/// Range checks of a section that has the right types.
pub(super) trait Checked {
    /// Adds a problem for every value of the section at `at` that makes no sense.
    fn check(&self, at: &str, problems: &mut Problems);
}

fn read(value: &Value, problems: &mut Problems) -> Option<Recipe> {
    let mut top = Section::open(String::new(), value, problems)?;
    let schema = top.required::<u64>("schema", problems);
    if let Some(schema) = schema.filter(|schema| *schema != SCHEMA_VERSION) {
        problems.add("schema", format!("expected {SCHEMA_VERSION}, got {schema}"));
    }
    let name = top.required::<String>("name", problems);
    if let Some(name) = &name {
        check_name(name, problems);
    }
    let matches = top.take("match").and_then(|v| read_match(v, problems));
    let model = top.field::<String>("model", problems);
    if let Some(model) = &model {
        check_builtin("model", model, &BUILTIN_MODELS, problems);
    }
    let base_access = top.field("base_access", problems).unwrap_or_default();
    let seed = top.field("seed", problems).unwrap_or_default();
    let data = top.take("data").and_then(|v| read_data(v, problems)).unwrap_or_default();
    let layers = top.take("layers").and_then(|v| read_layers("layers", v, problems)).unwrap_or_default();
    let stages = match top.take("stages") {
        Some(value) => list("stages".into(), value, problems, |at, v, p| read_stage(at, v, &layers, p)),
        None => {
            problems.add("stages", "is missing");
            None
        }
    };
    let suite = match top.take("suite") {
        Some(value) => read_suite("suite".into(), value, problems),
        None => {
            problems.add("suite", "is missing");
            None
        }
    };
    let utility = match top.take("utility") {
        Some(value) => read_utility(value, problems),
        None => Some(vec![]),
    };
    let thresholds = match top.take("thresholds") {
        Some(value) => read_thresholds(value, problems),
        None => Some(Thresholds::default()),
    };
    top.close(problems);
    if let (Some(thresholds), Some(suite)) = (&thresholds, &suite) {
        check_gates(thresholds, suite, problems);
    }
    Some(Recipe {
        schema: schema?,
        name: name?,
        matches,
        model,
        base_access,
        seed,
        data,
        layers,
        stages: stages?,
        suite: suite?,
        utility: utility?,
        thresholds: thresholds?,
    })
}

/// A list of one item at least, each read by `read`; `None` unless all of them can be.
fn list<T>(
    path: String,
    value: &Value,
    problems: &mut Problems,
    mut read: impl FnMut(String, &Value, &mut Problems) -> Option<T>,
) -> Option<Vec<T>> {
    let Some(items) = value.as_array() else {
        problems.add(path, format!("expected a list, got {}", show(value)));
        return None;
    };
    if items.is_empty() {
        problems.add(path, "expected one entry at least, got an empty list");
        return None;
    }
    let read: Vec<Option<T>> = items.iter().enumerate().map(|(i, item)| read(join(&path, i), item, problems)).collect();
    read.into_iter().collect()
}

fn check_name(name: &str, problems: &mut Problems) {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
        problems.add("name", format!("expected up to 64 of `a-z0-9-._`, got `{name}`"));
    }
}

/// A value that starts with `builtin:` must be one of `names`; any other must not be empty.
fn check_builtin(key: &str, given: &str, names: &[&str], problems: &mut Problems) {
    if given.trim().is_empty() {
        problems.add(key, "expected a path or a name, got nothing");
    } else if given.starts_with("builtin:") && !names.contains(&given) {
        let listed = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ");
        let guess = did_you_mean(given, names.iter().copied());
        problems.add(key, format!("expected {listed}, got `{given}`{guess}"));
    }
}

fn read_match(value: &Value, problems: &mut Problems) -> Option<Match> {
    let mut section = Section::open("match".into(), value, problems)?;
    let model_type = section.required::<String>("model_type", problems);
    let mut size = |key| section.take(key).and_then(|value| read_size(join("match", key), value, problems));
    let (min_parameters, max_parameters) = (size("min_parameters"), size("max_parameters"));
    if let (Some(min), Some(max)) = (min_parameters, max_parameters)
        && min > max
    {
        problems.add("match.min_parameters", format!("expected at most `max_parameters` ({max}), got {min}"));
    }
    section.close(problems);
    Some(Match { model_type: model_type?, min_parameters, max_parameters })
}

/// A count that may be written `5e6`.
fn read_size(key: String, value: &Value, problems: &mut Problems) -> Option<u64> {
    // Beyond 2⁵³ a double is no longer every whole number.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let whole = value.as_f64().filter(|v| v.fract() == 0.0 && (1.0..=EXACT).contains(v));
    if whole.is_none() {
        problems.add(key, format!("expected a whole number such as `5e6`, got {}", show(value)));
    }
    whole.map(|v| v as u64)
}

fn read_data(value: &Value, problems: &mut Problems) -> Option<Data> {
    let data: Data = Section::open("data".into(), value, problems)?.all(&[], problems)?;
    check_builtin("data.prompts", &data.prompts, &BUILTIN_PROMPTS, problems);
    problems.count("data", "own_requests", data.own_requests, 0, 100_000);
    Some(data)
}

fn read_layers(key: &str, value: &Value, problems: &mut Problems) -> Option<Layers> {
    Layers::try_from(value.clone()).map_err(|problem| problems.add(key, problem)).ok()
}

/// The `kind` of a stage or attack, one of `kinds`.
fn read_kind(section: &mut Section<'_>, kinds: &[&str], problems: &mut Problems) -> Option<String> {
    let kind = section.required::<String>("kind", problems)?;
    if kinds.contains(&kind.as_str()) {
        return Some(kind);
    }
    let listed = kinds.iter().map(|kind| format!("`{kind}`")).collect::<Vec<_>>().join(", ");
    let guess = did_you_mean(&kind, kinds.iter().copied());
    problems.add(section.key("kind"), format!("expected one of {listed}, got `{kind}`{guess}"));
    None
}

fn read_stage(at: String, value: &Value, default: &Layers, problems: &mut Problems) -> Option<Stage> {
    let mut section = Section::open(at, value, problems)?;
    let kind = read_kind(&mut section, STAGE_KINDS, problems);
    let layers = match section.take("layers") {
        Some(value) => read_layers(&section.key("layers"), value, problems),
        None => Some(default.clone()),
    };
    // Without a kind nobody knows the other keys; without layers they can still be checked.
    let stage = Stage::read(&kind?, layers.clone().unwrap_or_default(), section, problems);
    layers.and(stage)
}

fn read_suite(at: String, value: &Value, problems: &mut Problems) -> Option<Suite> {
    let mut section = Section::open(at.clone(), value, problems)?;
    let evaluation_prompts = section.field("evaluation_prompts", problems).unwrap_or(200);
    let validation_prompts = section.field("validation_prompts", problems).unwrap_or(VALIDATION_PROMPTS);
    let max_new_tokens = section.field("max_new_tokens", problems).unwrap_or(40);
    problems.count(&at, "evaluation_prompts", evaluation_prompts, 1, MAX_COUNT);
    problems.count(&at, "validation_prompts", validation_prompts, 1, MAX_COUNT);
    problems.count(&at, "max_new_tokens", max_new_tokens, 1, 65_536);
    let guard = section.take("guard").and_then(|value| {
        let at = section.key("guard");
        let guard: GuardSpec = Section::open(at.clone(), value, problems)?.all(&[], problems)?;
        check_builtin(&join(&at, "model"), &guard.model, &BUILTIN_MODELS, problems);
        Some(guard)
    });
    let calibration: Option<Calibration> = section.field("calibration", problems);
    if let Some(problem) = calibration.as_ref().and_then(Calibration::problem) {
        problems.add(section.key("calibration"), problem);
    }
    let early_stop: Option<EarlyStop> = section.field("early_stop", problems);
    if let Some(stop) = &early_stop {
        let at = section.key("early_stop");
        problems.count(&at, "looks", stop.looks, 2, MAX_LOOKS);
        for rate in stop.at.iter().filter(|rate| !(0.0..=1.0).contains(*rate)) {
            problems.add(format!("{at}.at"), format!("expected fractions of 1, got {rate}"));
        }
    }
    let budget = section.take("budget").and_then(|value| {
        let section = Section::open(section.key("budget"), value, problems)?;
        let (at, budget) = (section.path().clone(), section.all::<Allowance>(&[], problems)?);
        check_allowance(&at, &budget, problems);
        Some(budget)
    });
    let attacks = match section.take("attacks") {
        Some(value) => list(section.key("attacks"), value, problems, read_attack),
        None => {
            problems.add(section.key("attacks"), "is missing");
            None
        }
    };
    section.close(problems);
    Some(Suite {
        evaluation_prompts,
        validation_prompts,
        max_new_tokens,
        guard,
        calibration,
        early_stop,
        budget,
        attacks: attacks?,
    })
}

fn check_allowance(at: &str, allowance: &Allowance, problems: &mut Problems) {
    let bounds = [allowance.gradient_evaluations, allowance.generated_tokens];
    if bounds == [None, None] {
        problems.add(at, "expected `gradient_evaluations`, `generated_tokens` or both");
    } else if bounds.contains(&Some(0)) {
        problems.add(at, "expected bounds of 1 at least, got 0: leave out what must not be measured");
    }
}

/// More looks than these save nothing: the error of each becomes too small to decide anything.
const MAX_LOOKS: usize = 20;

/// The names of a unit enum, from its schema: the registry itself stays where it is defined.
fn names<T: schemars::JsonSchema>() -> Vec<String> {
    let schema = schemars::schema_for!(T).to_value();
    let text = |v: &Value| v.as_str().map(str::to_owned);
    let constants = schema["oneOf"].as_array().into_iter().flatten();
    let named = constants.flat_map(|one| {
        text(&one["const"]).into_iter().chain(one["enum"].as_array().into_iter().flatten().filter_map(text))
    });
    named.chain(schema["enum"].as_array().into_iter().flatten().filter_map(text)).collect()
}

fn read_attack(at: String, value: &Value, problems: &mut Problems) -> Option<AttackSpec> {
    let before = problems.0.len();
    let mut section = Section::open(at.clone(), value, problems)?;
    let kinds = names::<AttackKind>();
    let kind = read_kind(&mut section, &kinds.iter().map(String::as_str).collect::<Vec<_>>(), problems);
    let layers = section.take("layers").map(|v| read_layers(&join(&at, "layers"), v, problems));
    let search = section.take("search").map(|v| {
        let section = Section::open(join(&at, "search"), v, problems)?;
        section.all::<Search>(&[], problems)
    });
    // Whatever the kind, the other keys are the same, so an unknown kind does not stop their check.
    let mut given = vec![("kind", Value::from(kind.as_deref().unwrap_or("identity")))];
    let known = kind.as_deref().and_then(|kind| serde_json::from_value::<AttackKind>(kind.into()).ok());
    let of_kind =
        |kind: AttackKind| if matches!(search, Some(Some(_))) { &[Knowledge::Adaptive][..] } else { kind.knowledge() };
    if let Some(knowledge) = known.map(of_kind).filter(|_| !section.has("knowledge")) {
        given.push(("knowledge", serde_json::to_value(knowledge).ok()?));
    }
    given.push(("layers", serde_json::to_value(layers.clone().flatten().unwrap_or_default()).ok()?));
    given.push(("search", serde_json::to_value(search.flatten()).ok()?));
    let spec: AttackSpec = section.all(&given, problems)?;
    if kind.is_some() {
        spec.check(&at, problems);
    }
    (problems.0.len() == before).then_some(spec)
}

/// The row of a suite that imports an artefact, from its keys without `kind`; `source` names it in messages.
///
/// # Errors
/// [`Error::Usage`] with every problem.
pub fn imported_row(mut keys: serde_json::Map<String, Value>, source: &str) -> Result<AttackSpec> {
    keys.insert("kind".into(), "imported".into());
    let mut problems = Problems::default();
    let spec = read_attack(String::new(), &Value::Object(keys), &mut problems);
    spec.ok_or_else(|| {
        let listed: Vec<String> = problems.0.iter().map(|(key, text)| format!("{key}: {text}")).collect();
        Error::usage(format!("{source}: {}", listed.join("; ")))
    })
}

fn read_utility(value: &Value, problems: &mut Problems) -> Option<Vec<TaskSpec>> {
    if value.as_array().is_some_and(Vec::is_empty) {
        return Some(vec![]);
    }
    let tasks = list("utility".into(), value, problems, |at, v, p| {
        let mut section = Section::open(at.clone(), v, p)?;
        let task = section.required::<Value>("task", p)?;
        let task = parse::<Task>(join(&at, "task"), &task, p);
        let given = task.or(Some(Task::Maths)).and_then(|t| serde_json::to_value(t).ok())?;
        let spec: TaskSpec = section.all(&[("task", given)], p)?;
        spec.check(&at, p);
        task.map(|_| spec)
    })?;
    for (i, task) in tasks.iter().enumerate() {
        if tasks[..i].iter().any(|earlier| (earlier.task, &earlier.file) == (task.task, &task.file)) {
            problems.add(join(&join("utility", i), "task"), "is measured twice");
        }
    }
    Some(tasks)
}

fn read_thresholds(value: &Value, problems: &mut Problems) -> Option<Thresholds> {
    let mut section = Section::open("thresholds".into(), value, problems)?;
    fn part<T>(section: &mut Section<'_>, key: &str, problems: &mut Problems) -> Option<T>
    where
        T: serde::de::DeserializeOwned + schemars::JsonSchema + Default,
    {
        match section.take(key) {
            Some(value) => Section::open(section.key(key), value, problems)?.all(&[], problems),
            None => Some(T::default()),
        }
    }
    let frozen_asr = part(&mut section, "frozen_asr", problems);
    let adaptive_asr = part(&mut section, "adaptive_asr", problems);
    let control_asr = part(&mut section, "control_asr", problems);
    let clean_refusal = part(&mut section, "clean_refusal", problems);
    let degenerate = part(&mut section, "degenerate", problems);
    let rates: Rates = section.field("rates", problems).unwrap_or_default();
    section.close(problems);
    let thresholds = Thresholds {
        frozen_asr: frozen_asr?,
        adaptive_asr: adaptive_asr?,
        control_asr: control_asr?,
        clean_refusal: clean_refusal?,
        degenerate: degenerate?,
        rates,
    };
    thresholds.check("thresholds", problems);
    Some(thresholds)
}

/// A bound on rows that the suite does not have could never be decided.
fn check_gates(thresholds: &Thresholds, suite: &Suite, problems: &mut Problems) {
    let is_control = |attack: &&AttackSpec| attack.kind.method() == Method::Control;
    let gated = |attack: &&AttackSpec| !is_control(attack) && !attack.is_ungated();
    let has = |knowledge| suite.attacks.iter().filter(gated).any(|a| a.knowledge.contains(&knowledge));
    if !thresholds.rates.is_raw() && suite.calibration.is_none() {
        problems.add("thresholds.rates", "asks for corrected rates, but the suite has no `calibration` of the judge");
    }
    if !thresholds.rates.is_raw() && suite.early_stop.is_some() {
        let problem =
            "expected no `suite.early_stop`, which holds raw rates against the bounds, beside corrected rates";
        problems.add("thresholds.rates", problem);
    }
    let nothing = |what: &str| format!("bounds {what}, but `suite.attacks` has none");
    if thresholds.frozen_asr.gates() && !has(Knowledge::Frozen) {
        problems.add("thresholds.frozen_asr", nothing("attacks of knowledge `frozen`"));
    }
    if thresholds.adaptive_asr.gates() && !has(Knowledge::Adaptive) {
        problems.add("thresholds.adaptive_asr", nothing("attacks of knowledge `adaptive`"));
    }
    if thresholds.control_asr.max.is_some() && !suite.attacks.iter().any(|a| is_control(&a)) {
        problems.add("thresholds.control_asr", nothing("controls (`random`, `identity`)"));
    }
}

impl Checked for AttackSpec {
    fn check(&self, at: &str, problems: &mut Problems) {
        if let Some(budget) = &self.budget {
            check_allowance(&join(at, "budget"), budget, problems);
        }
        problems.count(at, "rank", self.rank, 1, MAX_RANK);
        for (key, value) in [("pairs", self.pairs), ("batch", self.batch)] {
            problems.count(at, key, value, 1, MAX_COUNT);
        }
        problems.count(at, "seeds", self.seeds, 1, MAX_CELLS);
        if let Some(steps) = self.steps {
            problems.count(at, "steps", steps, 1, MAX_COUNT);
        }
        if self.seeds > 1 && !self.draws() {
            let what = if self.kind == AttackKind::Imported { "an artefact" } else { "what draws nothing at random" };
            let problem = format!("{what} is the same every time; expected 1, got {}", self.seeds);
            problems.add(join(at, "seeds"), problem);
        }
        problems.positive(at, "learning_rate", self.learning_rate, 1.0);
        if self.knowledge.is_empty() {
            problems.add(join(at, "knowledge"), "expected `frozen`, `adaptive` or both, got an empty list");
        }
        if self.knowledge.iter().enumerate().any(|(i, k)| self.knowledge[..i].contains(k)) {
            problems.add(join(at, "knowledge"), "names the same twice");
        }
        if self.kind.method() == Method::Swept && self.coefficients.is_empty() {
            let unit = match self.kind {
                AttackKind::ItiHeads => "in multiples of a head's spread",
                AttackKind::OptimalTransport => "in parts of the way to the harmless class",
                _ => "in multiples of the mean residual norm",
            };
            problems.add(join(at, "coefficients"), format!("expected one strength at least, {unit}"));
        }
        let swept =
            matches!(self.kind.method(), Method::Swept | Method::Mapped) && self.of != Some(AttackKind::Ablation);
        if !swept && !self.coefficients.is_empty() {
            problems.add(join(at, "coefficients"), "this kind of attack sweeps no strengths");
        }
        if let Some(other) = self.knowledge.iter().find(|knowledge| !self.kind.knowledge().contains(knowledge)) {
            let why = match other {
                Knowledge::Adaptive => "an artefact that was made elsewhere is never re-fitted; expected `frozen`",
                Knowledge::Frozen => "weights are changed on the model that is measured; expected `adaptive`",
            };
            problems.add(join(at, "knowledge"), why);
        }
        self.check_weights(at, problems);
        self.check_transfer(at, problems);
        for key in self.without_use() {
            problems.add(join(at, key), "this kind of attack trains nothing and has no use for it");
        }
        let learned = matches!(self.kind.method(), Method::Learned(_));
        let transport = self.kind == AttackKind::OptimalTransport;
        if self.joint && !learned && !transport {
            problems.add(join(at, "joint"), "only learned edits and `optimal-transport` have a joint form");
        }
        for (i, value) in self.coefficients.iter().enumerate() {
            // There is no way back to the harmless class.
            let size = if transport { *value } else { value.abs() };
            problems.positive(&join(at, "coefficients"), &i.to_string(), size, 1e4);
        }
        if let Some(search) = &self.search {
            let at = join(at, "search");
            if !learned {
                problems.add(&at, "only learned edits are searched");
            }
            if self.knowledge.contains(&Knowledge::Frozen) {
                problems.add(&at, "only the hardened model is searched; expected `knowledge: [adaptive]`");
            }
            rates(&at, "learning_rates", &search.learning_rates, problems);
            problems.count(&at, "seeds", search.seeds, 1, MAX_CELLS);
            names_of_openings(&at, &search.openings, problems);
        }
    }
}

impl AttackSpec {
    /// What is transferred, and from where.
    fn check_transfer(&self, at: &str, problems: &mut Problems) {
        let given = [("source", self.source.is_some()), ("of", self.of.is_some()), ("map", self.map.is_some())];
        if self.kind != AttackKind::Transferred {
            for (key, _) in given.iter().filter(|(_, given)| *given) {
                problems.add(join(at, key), "this kind of attack has no use for it");
            }
            return;
        }
        for (key, _) in given[..2].iter().filter(|(_, given)| !given) {
            problems.add(join(at, key), "is missing");
        }
        if let Some(source) = &self.source {
            check_builtin(&join(at, "source"), source, &BUILTIN_MODELS, problems);
        }
        let direction = |kind: &AttackKind| matches!(kind, AttackKind::MeanDifference | AttackKind::Ablation);
        if let Some(of) = self.of.filter(|of| !matches!(of.method(), Method::Learned(_)) && !direction(of)) {
            let name = serde_json::to_string(&of).unwrap_or_default().replace('"', "`");
            problems
                .add(join(at, "of"), format!("expected a learned edit, `mean-difference` or `ablation`, got {name}"));
        }
    }

    /// Keys of artefacts and of changed weights: each has a meaning for some kinds only.
    fn check_weights(&self, at: &str, problems: &mut Problems) {
        use AttackKind::{Abliteration, DeltaStrip, Imported, Lora, Quantised};
        let given = [
            ("file", self.file.is_some(), &[Imported][..]),
            ("op", self.op.is_some(), &[Imported]),
            ("scale", self.scale.is_some(), &[Imported, DeltaStrip]),
            ("layer_offset", self.layer_offset.is_some(), &[Imported]),
            ("search_trials", self.search_trials.is_some(), &[Abliteration]),
            ("bits", self.bits.is_some(), &[Quantised]),
        ];
        for (key, _, _) in given.iter().filter(|(_, given, kinds)| *given && !kinds.contains(&self.kind)) {
            problems.add(join(at, key), "this kind of attack has no use for it");
        }
        if self.kind == Imported && self.file.is_none() {
            problems.add(join(at, "file"), "is missing");
        }
        if let Some(trials) = self.search_trials {
            problems.count(at, "search_trials", trials, 1, MAX_COUNT);
        }
        if self.kind == Lora && self.layers != Layers::default() {
            problems.add(join(at, "layers"), "a LoRA is trained on every block; expected none to be named");
        }
        if matches!(self.kind, Abliteration | Lora) && self.positions != Positions::All {
            problems.add(join(at, "positions"), "changed weights act on every token; expected `all`");
        }
        if self.kind == Quantised && !matches!(self.bits, Some(8 | 4)) {
            let got = self.bits.map_or_else(|| "nothing".into(), |bits| bits.to_string());
            problems.add(join(at, "bits"), format!("expected 8 or 4, got {got}"));
        }
        if let Some(scale) = self.scale.filter(|scale| !scale.is_finite() || scale.abs() > 1e4) {
            problems.add(join(at, "scale"), format!("expected a number from -10000 to 10000, got {scale}"));
        }
        if let Some(offset) = self.layer_offset.filter(|offset| offset.abs() > 1000) {
            problems.add(join(at, "layer_offset"), format!("expected a number from -1000 to 1000, got {offset}"));
        }
    }
}

impl Checked for TaskSpec {
    fn check(&self, at: &str, problems: &mut Problems) {
        if let Some(items) = self.items {
            problems.count(at, "items", items, 2, MAX_COUNT);
        }
        if let Some(bound) = self.bound {
            // A drop of a rate can't be larger than 1; what is relative or in nats can.
            let most = if self.task.is_rate() { 1.0 } else { 1e6 };
            problems.within(at, "bound", bound, most);
        }
        let imported = self.task == Task::Imported;
        if imported && self.file.is_none() {
            problems.add(join(at, "file"), "is missing");
        }
        let given = [
            ("file", self.file.is_some()),
            ("data", self.data.is_some()),
            ("metric", self.metric.is_some()),
            ("chat", self.chat),
        ];
        for (key, _) in given.iter().filter(|(_, given)| *given && !imported) {
            problems.add(join(at, key), "only tasks of kind `imported` have a use for it");
        }
    }
}

impl Checked for Thresholds {
    fn check(&self, at: &str, problems: &mut Problems) {
        let asr = |name: &'static str, bound: AsrBound| {
            [("max_mean", bound.max_mean), ("max_worst", bound.max_worst), ("min_drop", bound.min_drop)]
                .map(|(key, value)| (name, key, value))
        };
        let others = [
            ("control_asr", "max", self.control_asr.max),
            ("clean_refusal", "min", self.clean_refusal.min),
            ("degenerate", "max", self.degenerate.max),
        ];
        let bounds = asr("frozen_asr", self.frozen_asr).into_iter().chain(asr("adaptive_asr", self.adaptive_asr));
        for (name, key, value) in bounds.chain(others) {
            if let Some(value) = value {
                problems.within(&join(at, name), key, value, 1.0);
            }
        }
    }
}

pub(super) fn rates(at: &str, key: &str, values: &[f64], problems: &mut Problems) {
    if values.is_empty() {
        problems.add(join(at, key), "expected one step size at least, got an empty list");
    }
    for (i, &value) in values.iter().enumerate() {
        problems.positive(&join(at, key), &i.to_string(), value, 1.0);
    }
}

pub(super) fn names_of_openings(at: &str, openings: &[String], problems: &mut Problems) {
    for (i, opening) in openings.iter().enumerate() {
        if opening.trim().is_empty() || openings[..i].contains(opening) {
            problems.add(join(&join(at, "openings"), i), format!("expected a name not given before, got `{opening}`"));
        }
    }
}
