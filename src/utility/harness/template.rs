//! Texts of a document: the name of one of its fields, or a Jinja template over all of them.
//!
//! Rendered as the harness does it: undefined names are errors, a final line end is kept, Python's methods on strings work,
//! and values are written as Python writes them. Templates are untrusted code: they run on limited fuel, which bounds time
//! and not memory, and reach nothing but the document.

use std::collections::BTreeSet;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value as Jinja, ValueKind};
use minijinja::{Environment, Error as JinjaError, ErrorKind, State, UndefinedBehavior};
use serde_json::{Map, Value};

use super::pattern::Pattern;

/// Instructions that one rendering may execute.
const FUEL: u64 = 1_000_000;

/// One row of a data set.
pub type Document = Map<String, Value>;

/// Templates, and the fields that take precedence over them.
#[derive(Debug)]
pub struct Templates {
    environment: Environment<'static>,
    fields: BTreeSet<String>,
}

impl Templates {
    /// For documents with any of `fields`.
    #[must_use]
    pub fn new(fields: BTreeSet<String>) -> Self {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
        environment.set_syntax(syntax.expect("default delimiters: cannot fail"));
        environment.set_fuel(Some(FUEL));
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_unknown_method_callback(python_method);
        environment.add_filter("regex_replace", regex_replace);
        environment.set_formatter(|out, _, value| {
            let text = python_text(value).map_err(|problem| JinjaError::new(ErrorKind::InvalidOperation, problem))?;
            out.write_str(&text).map_err(JinjaError::from)
        });
        Self { environment, fields }
    }

    /// Whether `source` is the name of a field.
    #[must_use]
    pub fn is_field(&self, source: &str) -> bool {
        self.fields.contains(source)
    }

    /// The field that `source` names as it is, or its text as a template.
    ///
    /// # Errors
    /// What the template raised, or that this document lacks the field.
    pub fn value(&self, source: &str, document: &Document) -> Result<Value, String> {
        if self.fields.contains(source) {
            return document.get(source).cloned().ok_or_else(|| format!("the field `{source}` is missing"));
        }
        self.environment.render_str(source, of_document(document)).map(Value::String).map_err(|error| error.to_string())
    }

    /// A list of texts: a field, or a template of one expression such as `{{choices.text}}`.
    ///
    /// # Errors
    /// As [`Templates::value`], and where it is no list of texts.
    pub fn list(&self, source: &str, document: &Document) -> Result<Vec<String>, String> {
        let value = if self.fields.contains(source) {
            of_json(&self.value(source, document)?)
        } else {
            let whole = source.trim().strip_prefix("{{").and_then(|rest| rest.strip_suffix("}}"));
            let inner = whole.filter(|inner| !inner.contains("}}")).ok_or_else(|| {
                format!(
                    "expected a list, a field or a template of one expression such as `{{{{choices}}}}`, got `{source}`"
                )
            })?;
            self.environment
                .compile_expression(inner.trim_matches('-').trim())
                .and_then(|expression| expression.eval(of_document(document)))
                .map_err(|error| error.to_string())?
        };
        let wrong = || format!("expected a list of texts, got `{value}`");
        let items = value.try_iter().ok().filter(|_| value.kind() == ValueKind::Seq).ok_or_else(wrong)?;
        items.map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
    }
}

fn of_document(document: &Document) -> Jinja {
    Jinja::from_pairs(document.iter().map(|(key, value)| (key.as_str(), of_json(value))))
}

fn of_json(value: &Value) -> Jinja {
    match value {
        Value::Null => Jinja::from(()),
        Value::Bool(value) => Jinja::from(*value),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => Jinja::from(whole),
            (None, Some(whole)) => Jinja::from(whole),
            _ => Jinja::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => Jinja::from(text.as_str()),
        Value::Array(items) => Jinja::from(items.iter().map(of_json).collect::<Vec<_>>()),
        Value::Object(map) => of_document(map),
    }
}

/// A JSON value as Python's `str` writes it.
///
/// # Errors
/// For lists and maps, and for numbers that Python writes with an exponent.
pub fn as_text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        other => python_text(&of_json(other)),
    }
}

fn python_text(value: &Jinja) -> Result<String, String> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    match value.kind() {
        ValueKind::None => Ok("None".into()),
        ValueKind::Bool => Ok(if value.is_true() { "True".into() } else { "False".into() }),
        ValueKind::Number if value.is_integer() => Ok(value.to_string()),
        ValueKind::Number => match f64::try_from(value.clone()) {
            Ok(number) if number == 0.0 || (1e-4..1e16).contains(&number.abs()) => Ok(format!("{number:?}")),
            _ => Err(format!("cannot write the number `{value}` as Python writes it")),
        },
        ValueKind::Undefined => Err("an undefined value".into()),
        kind => Err(format!("expected a text or a number, got a {kind}: `{value}`")),
    }
}

/// Methods that Python's values have; `list.index` is how task files find the right choice.
fn python_method(state: &mut State, value: &Jinja, method: &str, arguments: &[Jinja]) -> Result<Jinja, JinjaError> {
    match (value.kind(), method, arguments) {
        (ValueKind::Seq, "index", [wanted]) => {
            let found = value.try_iter()?.position(|item| item == *wanted);
            found.map(Jinja::from).ok_or_else(|| {
                JinjaError::new(ErrorKind::InvalidOperation, format!("expected one of {value}, got `{wanted}`"))
            })
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments),
    }
}

/// `re.sub(pattern, replacement, text)` for replacements without groups.
fn regex_replace(text: &str, pattern: &str, replacement: &str) -> Result<String, JinjaError> {
    let wrong = |problem: String| JinjaError::new(ErrorKind::InvalidOperation, format!("regex_replace: {problem}"));
    if replacement.contains('\\') {
        return Err(wrong("groups and escapes in a replacement are not supported".into()));
    }
    Pattern::new(pattern).and_then(|pattern| pattern.replace(text, replacement)).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rendered(source: &str, document: &Value) -> Result<Value, String> {
        let document = document.as_object().unwrap();
        Templates::new(document.keys().cloned().collect()).value(source, document)
    }

    #[test]
    fn a_field_wins_over_a_template_and_keeps_its_type() {
        let document = json!({"answer": 3, "text": "{{answer}}"});
        assert_eq!(rendered("answer", &document).unwrap(), json!(3));
        assert_eq!(rendered("text", &document).unwrap(), json!("{{answer}}"));
        assert_eq!(rendered("{{answer}}", &document).unwrap(), json!("3"));
    }

    #[test]
    fn values_are_written_as_python_writes_them() {
        let document = json!({"t": true, "n": null, "x": 2.0, "y": 0.1, "s": "a\n", "l": [1], "e": 1e20});
        assert_eq!(rendered("{{t}} {{n}} {{x}} {{y}} {{s}}\n", &document).unwrap(), "True None 2.0 0.1 a\n\n");
        assert!(rendered("{{l}}", &document).is_err() && rendered("{{e}}", &document).is_err());
        assert_eq!(rendered("{{l.index(1)}}", &document).unwrap(), "0");
        assert!(rendered("{{l.index(2)}}", &document).unwrap_err().contains("expected one of [1], got `2`"));
        assert_eq!(rendered("{{s.strip().upper()}}{{l[0]}}", &document).unwrap(), "A1");
        assert_eq!(rendered("{{s | regex_replace('a$', 'b')}}", &document).unwrap(), "b\n");
    }

    #[test]
    fn what_is_undefined_or_endless_is_an_error() {
        let document = json!({"a": 1});
        assert!(rendered("{{b}}", &document).unwrap_err().contains("undefined"));
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
        assert!(rendered(endless, &document).unwrap_err().contains("fuel"));
    }

    #[test]
    fn lists_come_from_fields_and_expressions() {
        let document = json!({"choices": {"text": ["a", "b"]}, "one": "x", "plain": ["c"]});
        let templates = Templates::new(document.as_object().unwrap().keys().cloned().collect());
        let list = |source: &str| templates.list(source, document.as_object().unwrap());
        assert_eq!(list("{{choices.text}}").unwrap(), ["a", "b"]);
        assert_eq!(list("{{ [one, one ~ 'y'] }}").unwrap(), ["x", "xy"]);
        assert_eq!(list("plain").unwrap(), ["c"]);
        assert!(list("{{one}}").unwrap_err().contains("expected a list of texts"));
        assert!(list("['a', 'b']").unwrap_err().contains("template of one expression"));
    }
}
