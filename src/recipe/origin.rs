//! Where each value of a resolved recipe came from: a line of the text, the command line, or the defaults.

use serde_json::Value;

use super::raw::RawRecipe;

/// Column of the remarks.
const COLUMN: usize = 44;

/// A step of the way to a line of block YAML.
#[derive(Clone)]
enum Step {
    Key(String),
    Item(usize),
}

/// `shown`, the YAML of a resolved recipe, with a remark behind every value: `line 12`, `--set` or `default`.
///
/// It stays the same YAML: remarks are comments.
pub(super) fn with_origins(raw: &RawRecipe, shown: &str) -> String {
    let resolved: Value = serde_yaml::from_str(shown).unwrap_or_default();
    let mut way: Vec<(usize, Step)> = vec![];
    let mut text = String::new();
    for line in shown.lines() {
        let (mut indent, mut rest) = (line.len() - line.trim_start().len(), line.trim_start());
        while let Some(item) = rest.strip_prefix("- ") {
            way.retain(|(at, _)| *at <= indent);
            match way.last_mut() {
                Some((at, Step::Item(number))) if *at == indent => *number += 1,
                _ => way.push((indent, Step::Item(0))),
            }
            (indent, rest) = (indent + 2, item);
        }
        let key = rest.split_once(':').filter(|(_, value)| value.is_empty() || value.starts_with(' '));
        if let Some((key, _)) = key {
            way.retain(|(at, _)| *at < indent);
            way.push((indent, Step::Key(key.to_owned())));
            let path = joined(&way);
            if at(&resolved, &path).is_some_and(is_value) {
                let origin = origin(raw, &path);
                text += &format!("{line:<COLUMN$} # {origin}\n");
                continue;
            }
        }
        text += line;
        text.push('\n');
    }
    text
}

fn joined(way: &[(usize, Step)]) -> String {
    let steps = way.iter().map(|(_, step)| match step {
        Step::Key(key) => key.clone(),
        Step::Item(number) => number.to_string(),
    });
    steps.collect::<Vec<_>>().join(".")
}

fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |value, step| match value {
        Value::Array(items) => items.get(step.parse::<usize>().ok()?),
        _ => value.get(step),
    })
}

/// Whether it is written as one: no map, and no list of maps, whose parts have origins of their own. Text of several lines is left
/// without a remark, which would become a part of it.
fn is_value(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.iter().all(|item| !item.is_object() && !item.is_array()),
        Value::String(text) => !text.contains('\n'),
        _ => true,
    }
}

fn origin(raw: &RawRecipe, path: &str) -> String {
    match raw.place(path).trim_matches([' ', '(', ')']) {
        "from --set" => "--set".into(),
        line if !line.is_empty() && at(&raw.value, path).is_some() => line.into(),
        _ => "default".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Recipe;
    use super::*;

    #[test]
    fn every_value_says_where_it_came_from_and_the_recipe_stays_the_same() {
        let raw = RawRecipe::embedded("demo").unwrap().with_overrides(&["stages.0.rank=3"]).unwrap();
        let recipe = raw.validate().unwrap();
        let shown = with_origins(&raw, &recipe.show());
        assert_eq!(Recipe::parse(&shown, Path::new("shown")).unwrap().digest(), recipe.digest());
        let remark = |begin: &str| {
            let line = shown.lines().find(|line| line.trim_start_matches(['-', ' ']).starts_with(begin));
            line.unwrap_or_else(|| panic!("{begin} in {shown}")).split(" # ").nth(1).unwrap().to_owned()
        };
        assert_eq!(remark("rank: 3"), "--set");
        assert_eq!(remark("accept_below:"), "default");
        assert_eq!(remark("name: demo"), "line 4");
        let steps = raw.line("stages.1.steps").unwrap();
        assert_eq!(remark("steps: 600"), format!("line {steps}"));
        assert!(remark("inner_learning_rates:").starts_with("line "), "{shown}");
    }
}
