//! Recipe text read within limits, and overrides from the command line, before anything is believed.
//!
//! YAML can name one node many times (`*alias`), so a small file can unfold into gigabytes, and it can nest without end.
//! The reader below counts every node it builds, refuses tags and repeated keys, and remembers no positions: when a problem
//! is to be shown with its line, the text is read once more up to the offending key ([`RawRecipe::line`]).

use std::cell::Cell;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::EMBEDDED;
use super::suggest::did_you_mean;
use crate::error::{Error, Result};

/// Largest recipe file, in bytes.
pub const MAX_BYTES: usize = 1 << 20;

/// Brackets that may be open at once, those in texts counted too.
const MAX_BRACKETS: usize = 1_000;

/// Most nodes that a recipe may unfold into, aliases included.
const MAX_NODES: usize = 50_000;

/// Deepest nesting.
const MAX_DEPTH: usize = 32;

/// Recipe text that is YAML within limits and nothing more.
#[derive(Debug, Clone)]
pub struct RawRecipe {
    pub(super) path: PathBuf,
    pub(super) value: Value,
    text: String,
    overridden: Vec<String>,
}

impl RawRecipe {
    /// Reads YAML text; `path` only names it in messages.
    ///
    /// # Errors
    /// [`Error::Recipe`] when it is too large, no YAML, nested too deeply, unfolds too far, or is not a map; [`Error::Input`]
    /// when it is a report.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let refuse = |problem: String| Error::Recipe { path: path.into(), problems: vec![problem] };
        if text.len() > MAX_BYTES {
            return Err(refuse(format!("expected at most {MAX_BYTES} bytes, got {}", text.len())));
        }
        let value = read_yaml(text).map_err(|error| refuse(error.to_string()))?;
        if !value.is_object() {
            return Err(refuse("expected a map of settings at the top".into()));
        }
        if ["schema_version", "recipe_digest", "verdict"].iter().all(|key| value.get(key).is_some()) {
            let hint = "`immunise report show` prints it; a published model has its recipe beside it, `recipe.yaml`";
            return Err(Error::file(path, "expected a recipe, got a report").hint(hint));
        }
        Ok(Self { path: path.into(), value, text: text.into(), overridden: vec![] })
    }

    /// Reads a recipe file.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be read, else as [`RawRecipe::parse`].
    pub fn load(path: &Path) -> Result<Self> {
        let io = |source| Error::io(path, source);
        let mut bytes = vec![];
        // One byte beyond the limit is enough to know, whatever the file (or pipe) goes on to say.
        let file = std::fs::File::open(path).map_err(io)?;
        file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
        let refuse = |problem: &str| Error::Recipe { path: path.into(), problems: vec![problem.into()] };
        if bytes.len() > MAX_BYTES {
            return Err(refuse("expected at most 1 MiB"));
        }
        let text = String::from_utf8(bytes).map_err(|_| refuse("expected UTF-8 text"))?;
        Self::parse(&text, path)
    }

    /// A recipe of [`EMBEDDED`].
    ///
    /// # Errors
    /// [`Error::Usage`] listing the names when there is none of that name.
    pub fn embedded(name: &str) -> Result<Self> {
        let names = || EMBEDDED.iter().map(|(name, _)| *name);
        let Some((_, text)) = EMBEDDED.iter().find(|(known, _)| *known == name) else {
            let listed = names().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            return Err(Error::usage(format!("no recipe `{name}` in this build{}", did_you_mean(name, names())))
                .hint(format!("there are {listed}")));
        };
        Self::parse(text, Path::new(&format!("<{name}>")))
    }

    /// Puts `a.b.0.c=value` assignments in, in order; values are YAML, missing maps are made, list items must exist.
    ///
    /// # Errors
    /// [`Error::Usage`] for an assignment that cannot be made.
    pub fn with_overrides<S: AsRef<str>>(mut self, overrides: &[S]) -> Result<Self> {
        for assignment in overrides {
            let assignment = assignment.as_ref();
            let Some((key, text)) = assignment.split_once('=') else {
                return Err(Error::usage(format!("expected `KEY=VALUE`, got `{assignment}`"))
                    .hint("such as `--set stages.0.rank=4`"));
            };
            let wrong = |problem: String| Error::usage(format!("`{assignment}`: {problem}"));
            if text.len() > MAX_BYTES {
                return Err(wrong("the value is too long".into()));
            }
            let value = if text.trim().is_empty() {
                Value::Null
            } else {
                read_yaml(text).map_err(|error| wrong(error.to_string()))?
            };
            assign(&mut self.value, key.trim(), value).map_err(wrong)?;
            self.overridden.push(key.trim().into());
        }
        Ok(self)
    }

    /// Where a key stands: ` (line N)`, ` (from --set)`, or nothing where it is not in the text.
    pub(super) fn place(&self, key: &str) -> String {
        let inside =
            |outer: &String| key == outer || key.strip_prefix(outer.as_str()).is_some_and(|k| k.starts_with('.'));
        if self.overridden.iter().any(inside) {
            return " (from --set)".into();
        }
        self.line(key).map_or_else(String::new, |line| format!(" (line {line})"))
    }

    /// The 1-based line of a key or list item such as `stages.0.rank`; of its nearest parent if it is not there itself.
    #[must_use]
    pub fn line(&self, key: &str) -> Option<usize> {
        let steps: Vec<&str> = key.split('.').collect();
        (1..=steps.len()).rev().find_map(|length| {
            // The seeker fails on purpose where the key stands, because only errors carry a position.
            let error = Seek(&steps[..length]).deserialize(serde_yaml::Deserializer::from_str(&self.text)).err()?;
            error.to_string().contains(FOUND).then(|| error.location().map(|at| at.line()))?
        })
    }
}

fn read_yaml(text: &str) -> Result<Value, serde_yaml::Error> {
    // The parser takes quadratic time for brackets in brackets before anybody sees a value.
    let depths = text.bytes().scan(0_usize, |depth, byte| {
        *depth = match byte {
            b'[' | b'{' => *depth + 1,
            b']' | b'}' => depth.saturating_sub(1),
            _ => *depth,
        };
        Some(*depth)
    });
    if depths.max().is_some_and(|depth| depth > MAX_BRACKETS) {
        return Err(serde::de::Error::custom(format!("expected at most {MAX_BRACKETS} brackets within one another")));
    }
    let nodes = Cell::new(0);
    Node { nodes: &nodes, depth: 0 }.deserialize(serde_yaml::Deserializer::from_str(text))
}

fn assign(root: &mut Value, key: &str, value: Value) -> Result<(), String> {
    if key.is_empty() || key.split('.').any(str::is_empty) {
        return Err(format!("expected a key such as `stages.0.rank`, got `{key}`"));
    }
    let mut at = root;
    for step in key.split('.') {
        if at.is_null() {
            *at = Value::Object(Map::new());
        }
        at = match at {
            Value::Object(map) => map.entry(step).or_insert(Value::Null),
            Value::Array(items) => {
                let length = items.len();
                let item = step.parse::<usize>().ok().and_then(|index| items.get_mut(index));
                item.ok_or_else(|| format!("expected an index below {length}, got `{step}`"))?
            }
            _ => return Err(format!("`{step}` is inside a value that is neither a map nor a list")),
        };
    }
    *at = value;
    Ok(())
}

/// Builds one JSON value from YAML, counting.
#[derive(Clone, Copy)]
struct Node<'a> {
    nodes: &'a Cell<usize>,
    depth: usize,
}

impl Node<'_> {
    fn count<E: serde::de::Error>(&self) -> Result<(), E> {
        self.nodes.set(self.nodes.get() + 1);
        if self.nodes.get() > MAX_NODES {
            return Err(E::custom(format!("unfolds into more than {MAX_NODES} values")));
        }
        Ok(())
    }

    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format!("nested more than {MAX_DEPTH} deep")));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.count()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        serde_json::Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("expected a finite number"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(A::Error::custom("tags such as `!name` have no meaning here"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut items = vec![];
        while let Some(item) = seq.next_element_seed(inner)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut entries = Map::new();
        while let Some(key) = map.next_key_seed(inner)? {
            let Value::String(key) = key else {
                return Err(A::Error::custom(format!("expected a name as key, got `{key}`")));
            };
            if entries.contains_key(&key) {
                return Err(A::Error::custom(format!("`{key}` is given twice")));
            }
            let value = map.next_value_seed(inner)?;
            entries.insert(key, value);
        }
        Ok(Value::Object(entries))
    }
}

/// What the seeker fails with where it finds its key.
const FOUND: &str = "the key that was sought";

/// Walks to a key and fails there.
struct Seek<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.0.is_empty() { deserializer.deserialize_any(Found) } else { deserializer.deserialize_any(self) }
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map or a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some(index) = self.0.first().and_then(|step| step.parse::<usize>().ok()) else {
            return Err(A::Error::custom("expected an index"));
        };
        for _ in 0..index {
            if seq.next_element::<IgnoredAny>()?.is_none() {
                break;
            }
        }
        seq.next_element_seed(Seek(&self.0[1..]))?;
        Err(A::Error::custom("no such item"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let last = self.0.len() == 1;
        while let Some(matched) = map.next_key_seed(Key { wanted: self.0.first().copied(), last })? {
            if matched {
                map.next_value_seed(Seek(&self.0[1..]))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Err(A::Error::custom("no such key"))
    }
}

/// Compares a map's key with the wanted one, and fails there if it is the last step.
struct Key<'a> {
    wanted: Option<&'a str>,
    last: bool,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<bool, E> {
        match (self.wanted == Some(v), self.last) {
            (true, true) => Err(E::custom(FOUND)),
            (matched, _) => Ok(matched),
        }
    }
}

/// Fails at whatever stands here.
struct Found;

impl<'de> Visitor<'de> for Found {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(FOUND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> RawRecipe {
        RawRecipe::parse(text, Path::new("r.yaml")).unwrap()
    }

    fn refused(text: &str) -> String {
        RawRecipe::parse(text, Path::new("r.yaml")).unwrap_err().to_string()
    }

    #[test]
    fn a_key_is_found_on_its_line() {
        let r = raw("name: x\nstages:\n  - kind: et\n    rank: 2\n  - {kind: adversarial,\n     steps: 3}\n");
        assert_eq!(r.line("name"), Some(1));
        assert_eq!(r.line("stages.0"), Some(3));
        assert_eq!(r.line("stages.0.rank"), Some(4));
        assert_eq!(r.line("stages.1.steps"), Some(6));
        assert_eq!(r.line("stages.1.missing"), Some(5), "the nearest parent");
        assert_eq!(r.line("absent"), None);
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for i in 1..9 {
            let items = vec![format!("*a{}", i - 1); 9].join(", ");
            text.push_str(&format!("a{i}: &a{i} [{items}]\n"));
        }
        let message = refused(&text);
        assert!(message.contains("unfolds into more than") || message.contains("repetition"), "{message}");
    }

    #[test]
    fn nesting_and_size_are_limited() {
        assert!(refused(&format!("a: {}{}", "[".repeat(60), "]".repeat(60))).contains("nested more than 32 deep"));
        assert!(refused(&format!("a: {}", "x".repeat(MAX_BYTES))).contains("at most"));
    }

    #[test]
    fn what_yaml_allows_and_a_recipe_does_not() {
        assert!(refused("a: 1\na: 2\n").contains("`a` is given twice"));
        assert!(refused("a: .nan\n").contains("finite"));
        assert!(refused("a: !thing 3\n").contains("tags"));
        assert!(refused("1: 2\n").contains("name as key"));
        assert!(refused("- a\n").contains("map of settings"));
        assert!(refused("a: [1\n").contains("line"));
        assert!(refused("a: 1\n---\nb: 2\n").contains("document"));
        assert!(!refused("").is_empty());
    }

    #[test]
    fn overrides_reach_into_maps_and_lists() {
        let r = raw("stages: [{kind: et}]\n");
        let r = r.with_overrides(&["stages.0.rank=4", "match.model_type=llama", "stages.0.layers=[0, 2-3]", "seed="]);
        let value = r.unwrap().value;
        assert_eq!(value["stages"][0]["rank"], 4);
        assert_eq!(value["match"]["model_type"], "llama");
        assert_eq!(value["stages"][0]["layers"], serde_json::json!([0, "2-3"]));
        assert!(value["seed"].is_null());
    }

    #[test]
    fn overrides_that_cannot_be_made_say_why() {
        let make = |text: &str| raw("a: [1]\nb: 2\n").with_overrides(&[text]).unwrap_err().to_string();
        assert!(make("rank").contains("expected `KEY=VALUE`"));
        assert!(make("a.3=1").contains("expected an index below 1, got `3`"));
        assert!(make("b.c=1").contains("neither a map nor a list"));
        assert!(make("a..b=1").contains("expected a key"));
        assert!(make("c=[1").contains("`c=[1`"));
    }
}
