//! A bundled recipe's text fitted to one model: its blocks by number, and a budget for its size. Comments stay.
//!
//! An attack that is fitted anew at every block of a large model, and the activations of a large batch, are what a suite
//! and a stage cost; so with size the rows act at fewer blocks and batches shrink, and nothing else changes.

use super::EMBEDDED;

/// What the sizes of models change.
struct Budget {
    /// Parameters below which it applies.
    below: u64,
    /// Every how many blocks an attack is fitted.
    every: usize,
    /// Lines of the bundled recipes and what they become.
    lines: &'static [(&'static str, &'static str)],
}

/// From small to large; the last has no limit.
const BUDGETS: [Budget; 3] = [
    Budget { below: 1_000_000_000, every: 1, lines: &[] },
    Budget {
        below: 4_000_000_000,
        every: 2,
        lines: &[("steps: 600", "steps: 400"), ("batch: 8", "batch: 4"), ("anchor_batch: 12", "anchor_batch: 6")],
    },
    Budget {
        below: u64::MAX,
        every: 4,
        lines: &[("steps: 600", "steps: 300"), ("batch: 8", "batch: 2"), ("anchor_batch: 12", "anchor_batch: 4")],
    },
];

/// Kinds whose rows are one fit for each of their blocks.
const AT_EACH_BLOCK: [&str; 3] = ["noreft", "mean-difference", "random"];

/// The text of the bundled recipe `name` for a model of `n_layers` blocks and so many parameters; `None` when there is no
/// such recipe.
#[must_use]
pub fn fitted(name: &str, n_layers: usize, parameters: u64) -> Option<String> {
    let (_, text) = EMBEDDED.iter().find(|(known, _)| *known == name)?;
    let budget = BUDGETS.iter().find(|budget| parameters < budget.below).unwrap_or(&BUDGETS[BUDGETS.len() - 1]);
    let last = n_layers.saturating_sub(1);
    let blocks: Vec<String> = (0..n_layers).step_by(budget.every).map(|block| block.to_string()).collect();
    let blocks = blocks.join(", ");
    let mut fitted = format!("# Fitted to a model of {n_layers} blocks and {} parameters.\n", shown(parameters));
    for line in text.lines() {
        let (indent, content) = line.split_at(line.len() - line.trim_start().len());
        let kind = content.strip_prefix("- {kind: ").and_then(|rest| rest.split([',', '}']).next());
        let row = kind.is_some_and(|kind| AT_EACH_BLOCK.contains(&kind)) && !content.contains("layers:");
        fitted += &match content.strip_suffix('}') {
            Some(open) if row && budget.every > 1 => format!("{indent}{open}, layers: [{blocks}]}}"),
            _ if line == "layers: each" => format!("layers: [\"0-{last}\"]"),
            _ => match budget.lines.iter().find(|(from, _)| *from == content) {
                Some((_, to)) => format!("{indent}{to}"),
                None => line.to_owned(),
            },
        };
        fitted.push('\n');
    }
    Some(fitted)
}

/// A recipe's text for a model other than the bundled one, which `demo` names: the model is given on the command line.
#[must_use]
pub fn for_another(text: &str) -> String {
    let own = |line: &&str| line.starts_with("model:") || line.starts_with("# Hardens the bundled model");
    text.lines().filter(|line| !own(line)).flat_map(|line| [line, "\n"]).collect()
}

/// `1.5 billion` or `135 million`.
fn shown(parameters: u64) -> String {
    let millions = parameters as f64 / 1e6;
    if millions < 1000.0 { format!("{millions:.0} million") } else { format!("{:.1} billion", millions / 1000.0) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::recipe::{Recipe, Stage};

    fn recipe(name: &str, n_layers: usize, parameters: u64) -> Recipe {
        Recipe::parse(&fitted(name, n_layers, parameters).unwrap(), Path::new("fitted.yaml")).unwrap()
    }

    #[test]
    fn every_bundled_recipe_stays_valid_at_every_size() {
        for (name, _) in EMBEDDED {
            for parameters in [1_000_000, 1_500_000_000, 8_000_000_000] {
                let recipe = recipe(name, 30, parameters);
                assert_eq!(recipe.layers.resolve(30, "layers").unwrap().len(), 30, "{name}");
            }
        }
    }

    #[test]
    fn larger_models_get_fewer_fits_and_smaller_batches_in_every_family() {
        let cost = |name: &str, parameters: u64| {
            let recipe = recipe(name, 32, parameters);
            let fits = recipe.suite.attacks[0].layers.resolve(32, "layers").unwrap().len();
            let batch = recipe.stages.iter().find_map(|stage| match stage {
                Stage::Adversarial(spec, _) => Some((spec.steps, spec.batch, spec.anchor_batch)),
                _ => None,
            });
            (fits, batch.unwrap())
        };
        for (name, _) in EMBEDDED.iter().filter(|(name, _)| *name != "demo") {
            assert_eq!(cost(name, 135_000_000), (32, (600, 8, 12)), "{name}");
            assert_eq!(cost(name, 1_500_000_000), (16, (400, 4, 6)), "{name}");
            assert_eq!(cost(name, 8_000_000_000), (8, (300, 2, 4)), "{name}");
        }
    }

    #[test]
    fn only_the_bundled_model_s_recipe_names_it() {
        let text = fitted("demo", 2, 100_000).unwrap();
        assert!(text.contains("\nmodel: builtin:tiny-chat\n") && text.contains("the bundled model"), "{text}");
        let other = for_another(&text);
        assert_eq!(Recipe::parse(&other, Path::new("other.yaml")).unwrap().model, None);
        assert!(!other.contains("the bundled model") && text.lines().count() == other.lines().count() + 2, "{other}");
        for (name, text) in EMBEDDED.iter().filter(|(name, _)| *name != "demo") {
            assert_eq!(for_another(text), **text, "{name}");
        }
    }

    #[test]
    fn comments_stay_and_the_size_is_said() {
        let text = fitted("llama", 32, 8_030_000_000).unwrap();
        assert!(text.starts_with("# Fitted to a model of 32 blocks and 8.0 billion parameters.\n"), "{text}");
        assert!(text.contains("# Set to private when") && text.contains("layers: [\"0-31\"]\n"), "{text}");
        assert!(fitted("lama", 1, 1).is_none());
    }
}
