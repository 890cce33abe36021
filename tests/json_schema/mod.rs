//! The part of JSON Schema (draft 7) that SARIF's schema uses; a keyword beyond it is an error, so nothing goes unchecked.
//!
//! Our own because every kept crate for it switches on features of crates that the program has too, among them how numbers
//! are read (`serde_json/float_roundtrip`): the tests would run another program than the one that is shipped.
//! `tests/interop/ci_outputs.py` asks a complete validator about the same files.

use serde_json::Value;

/// Everything in `value` that breaks `schema`, with its place.
pub fn problems(schema: &Value, value: &Value) -> Vec<String> {
    let mut found = vec![];
    check(schema, schema, value, "", &mut found);
    found
}

fn check(root: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    for (keyword, rule) in schema.as_object().unwrap() {
        let holds = match keyword.as_str() {
            "$ref" => {
                let target = rule.as_str().unwrap().strip_prefix('#').unwrap();
                check(root, root.pointer(target).unwrap(), value, at, found);
                true
            }
            "type" => is_a(value, rule),
            "enum" => rule.as_array().unwrap().contains(value),
            "required" => {
                each(value, |map| rule.as_array().unwrap().iter().all(|k| map.contains_key(k.as_str().unwrap())))
            }
            "properties" => {
                for (key, inner) in value.as_object().into_iter().flatten() {
                    if let Some(schema) = rule.get(key) {
                        check(root, schema, inner, &format!("{at}/{key}"), found);
                    }
                }
                true
            }
            "additionalProperties" => {
                let known = |key: &str| schema.get("properties").is_some_and(|known| known.get(key).is_some());
                let others = || value.as_object().into_iter().flatten().filter(|(key, _)| !known(key));
                match rule {
                    Value::Bool(allowed) => *allowed || others().next().is_none(),
                    rule => {
                        others().for_each(|(key, inner)| check(root, rule, inner, &format!("{at}/{key}"), found));
                        true
                    }
                }
            }
            "items" => {
                for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(root, rule, item, &format!("{at}/{i}"), found);
                }
                true
            }
            "minItems" => value.as_array().is_none_or(|items| items.len() as u64 >= rule.as_u64().unwrap()),
            "uniqueItems" => {
                let unique = |items: &Vec<Value>| items.iter().enumerate().all(|(i, item)| !items[..i].contains(item));
                rule == &Value::Bool(false) || value.as_array().is_none_or(unique)
            }
            "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|number| number <= rule.as_f64().unwrap()),
            "pattern" => {
                value.as_str().is_none_or(|text| regex::Regex::new(rule.as_str().unwrap()).unwrap().is_match(text))
            }
            "anyOf" => rule.as_array().unwrap().iter().any(|rule| fits(root, rule, value)),
            "oneOf" => rule.as_array().unwrap().iter().filter(|rule| fits(root, rule, value)).count() == 1,
            // `format` is a remark in draft 7.
            "$schema" | "$id" | "title" | "description" | "default" | "format" | "definitions" => true,
            other => panic!("{at}: the keyword `{other}` is not implemented"),
        };
        if !holds {
            found.push(format!("{at}: {keyword} {rule}, got {value}"));
        }
    }
}

fn fits(root: &Value, schema: &Value, value: &Value) -> bool {
    let mut found = vec![];
    check(root, schema, value, "", &mut found);
    found.is_empty()
}

fn is_a(value: &Value, names: &Value) -> bool {
    let one = |name: &Value| match name.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "null" => value.is_null(),
        other => panic!("the type `{other}` is not implemented"),
    };
    names.as_array().map_or_else(|| one(names), |names| names.iter().any(one))
}

fn each(value: &Value, holds: impl Fn(&serde_json::Map<String, Value>) -> bool) -> bool {
    value.as_object().is_none_or(holds)
}
