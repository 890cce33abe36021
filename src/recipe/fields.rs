//! Takes a map apart key by key, so that one wrong key does not hide the next.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::suggest::did_you_mean;

/// Problems found so far, each with the key it is about, dotted.
#[derive(Debug, Default)]
pub struct Problems(pub Vec<(String, String)>);

impl Problems {
    /// Adds a problem of `key`.
    pub fn add(&mut self, key: impl Into<String>, text: impl Into<String>) {
        self.0.push((key.into(), text.into()));
    }

    /// Requires `min ≤ value ≤ max`.
    pub fn count(&mut self, at: &str, key: &str, value: usize, min: usize, max: usize) {
        if value < min {
            self.add(join(at, key), format!("expected at least {min}, got {value}"));
        } else if value > max {
            self.add(join(at, key), format!("expected at most {max}, got {value}"));
        }
    }

    /// Requires `0 < value ≤ max`.
    pub fn positive(&mut self, at: &str, key: &str, value: f64, max: f64) {
        if !(value > 0.0 && value <= max) {
            self.add(join(at, key), format!("expected a number above 0 and at most {max}, got {value}"));
        }
    }

    /// Requires `0 ≤ value ≤ max`.
    pub fn within(&mut self, at: &str, key: &str, value: f64, max: f64) {
        if !(0.0..=max).contains(&value) {
            self.add(join(at, key), format!("expected a number from 0 to {max}, got {value}"));
        }
    }
}

/// `at.key`, or `key` at the top.
pub fn join(at: &str, key: impl std::fmt::Display) -> String {
    if at.is_empty() { key.to_string() } else { format!("{at}.{key}") }
}

/// One map of a recipe, and which of its keys have a meaning.
#[derive(Debug)]
pub struct Section<'v> {
    path: String,
    map: &'v Map<String, Value>,
    known: Vec<String>,
}

impl<'v> Section<'v> {
    /// The map at `path`, or a problem.
    pub fn open(path: String, value: &'v Value, problems: &mut Problems) -> Option<Self> {
        match value.as_object() {
            Some(map) => Some(Self { path, map, known: vec![] }),
            None => {
                problems.add(path, format!("expected a map, got {}", show(value)));
                None
            }
        }
    }

    /// Where the map stands, dotted; empty at the top.
    pub fn path(&self) -> &String {
        &self.path
    }

    /// The dotted path of one of its keys.
    pub fn key(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// Whether a key is there, and not null.
    pub fn has(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|value| !value.is_null())
    }

    /// The value of a key; `None` when it is absent or null. Either way the key is known from here on.
    pub fn take(&mut self, key: &str) -> Option<&'v Value> {
        self.known.push(key.into());
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The value of a key as `T`; `None` when it is absent, null or wrong, the latter with a problem.
    pub fn field<T: DeserializeOwned>(&mut self, key: &str, problems: &mut Problems) -> Option<T> {
        let value = self.take(key)?;
        parse(self.key(key), value, problems)
    }

    /// A key that must be there, as `T`.
    pub fn required<T: DeserializeOwned>(&mut self, key: &str, problems: &mut Problems) -> Option<T> {
        if self.map.get(key).is_none_or(Value::is_null) {
            self.known.push(key.into());
            problems.add(self.key(key), "is missing");
            return None;
        }
        self.field(key, problems)
    }

    /// Reports every key that nobody took.
    pub fn close(self, problems: &mut Problems) {
        let known: Vec<&str> = self.known.iter().map(String::as_str).collect();
        self.unknown(&known, problems);
    }

    /// The keys not taken so far, together with `given`, as one `T`; every wrong or unknown key is a problem of its own.
    ///
    /// `T` must not read a key that was taken, unless it is among `given`.
    pub fn all<T>(self, given: &[(&str, Value)], problems: &mut Problems) -> Option<T>
    where
        T: DeserializeOwned + JsonSchema,
    {
        let schema = schemars::schema_for!(T).to_value();
        let own: Vec<String> =
            schema["properties"].as_object().map(|p| p.keys().cloned().collect()).unwrap_or_default();
        let known: Vec<&str> = self.known.iter().chain(&own).map(String::as_str).collect();
        let before = problems.0.len();
        self.unknown(&known, problems);
        let fixed: Map<String, Value> = given.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut whole = fixed.clone();
        for (key, value) in self.map {
            if self.known.contains(key) || !own.contains(key) {
                continue;
            }
            whole.insert(key.clone(), value.clone());
            if required.iter().any(|r| r != key && !fixed.contains_key(*r)) {
                continue;
            }
            let mut alone = fixed.clone();
            alone.insert(key.clone(), value.clone());
            if let Err(error) = serde_json::from_value::<T>(Value::Object(alone)) {
                problems.add(self.key(key), explain(&error.to_string()));
            }
        }
        for key in required.iter().filter(|key| !whole.contains_key(**key)) {
            problems.add(self.key(key), "is missing");
        }
        if problems.0.len() > before {
            return None;
        }
        parse(self.path.clone(), &Value::Object(whole), problems)
    }

    fn unknown(&self, known: &[&str], problems: &mut Problems) {
        for key in self.map.keys().filter(|key| !known.contains(&key.as_str())) {
            let mut text = format!("unknown key{}", did_you_mean(key, known.iter().copied()));
            if !text.contains("did you mean") {
                // A key that was taken by hand may be one of the section's type as well.
                let once = known.iter().enumerate().filter(|(i, key)| !known[..*i].contains(key));
                let listed = once.map(|(_, key)| format!("`{key}`")).collect::<Vec<_>>().join(", ");
                text = format!("unknown key; expected one of {listed}");
            }
            problems.add(self.key(key), text);
        }
    }
}

/// The value as `T`, or a problem of `key`.
pub fn parse<T: DeserializeOwned>(key: String, value: &Value, problems: &mut Problems) -> Option<T> {
    match serde_json::from_value(value.clone()) {
        Ok(parsed) => Some(parsed),
        Err(error) => {
            problems.add(key, explain(&error.to_string()));
            None
        }
    }
}

/// A value as a message shows it.
pub fn show(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(v) => format!("`{v}`"),
        Value::Number(v) => format!("`{v}`"),
        Value::String(v) => format!("`{v}`"),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "a map".into(),
    }
}

/// Serde's message in the words of this tool: `expected X, got Y`.
fn explain(message: &str) -> String {
    if let Some(rest) = message.strip_prefix("unknown variant ") {
        let names: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
        if let Some((given, known)) = names.split_first() {
            let listed = known.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ");
            return format!("expected one of {listed}, got `{given}`{}", did_you_mean(given, known.iter().copied()));
        }
    }
    for kind in ["invalid type: ", "invalid value: "] {
        if let Some((got, expected)) = message.strip_prefix(kind).and_then(|rest| rest.rsplit_once(", expected ")) {
            let expected = match expected {
                "usize" | "u64" | "u32" => "a whole number, 0 or more",
                "f64" => "a number",
                "a sequence" => "a list",
                "variant identifier" => "a name",
                other if other.starts_with("struct ") => "a map",
                other => other,
            };
            let got = ["string ", "integer ", "floating point ", "boolean "]
                .iter()
                .find_map(|prefix| got.strip_prefix(prefix))
                .map_or_else(|| got.to_owned(), |value| format!("`{}`", value.trim_matches(['"', '`'])));
            let got = got.replace("null", "nothing").replace("sequence", "a list").replace("map", "a map");
            return format!("expected {expected}, got {got}");
        }
    }
    message.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serde_messages_become_expected_and_got() {
        let explain_of = |value: Value| explain(&serde_json::from_value::<usize>(value).unwrap_err().to_string());
        assert_eq!(explain_of("two".into()), "expected a whole number, 0 or more, got `two`");
        assert_eq!(explain_of((-1).into()), "expected a whole number, 0 or more, got `-1`");
        assert_eq!(explain_of(Value::Null), "expected a whole number, 0 or more, got nothing");
        assert_eq!(explain_of(Value::Array(vec![])), "expected a whole number, 0 or more, got a list");
    }
}
