//! How `config.json` states rotary embeddings: base, share of the head, and the rule that stretches a context.

use std::path::Path;

use super::refuse;
use crate::checkpoint::config::{CONFIG, Config, Keys};
use crate::model::frequencies::{Rope, RopeScaling};
use crate::{Error, Result};

const RULES: &str = "one of default, linear, dynamic, llama3, yarn, longrope";

/// The rotary embedding of the model, or of its blocks without a window where those have their own.
pub(super) fn global(config: &Config) -> Result<Rope> {
    let empty = serde_json::Map::new();
    let map = config.rope.raw.as_ref().and_then(|raw| raw.as_object()).unwrap_or(&empty);
    let keys = Keys::new(Path::new(CONFIG), map);
    let fraction = match keys.positive("partial_rotary_factor")? {
        Some(fraction) => fraction,
        None => config.keys().positive("partial_rotary_factor")?.unwrap_or(1.0),
    };
    if fraction > 1.0 {
        return refuse("partial_rotary_factor", "a share of at most 1", &fraction.to_string());
    }
    let rope = Rope { theta: config.rope.theta, fraction, scaling: RopeScaling::None };
    let count = rope.count(config.head_dim());
    if count == 0 {
        return refuse("head_dim", "at least 2 rotated values in each head", &config.head_dim().to_string());
    }
    Ok(Rope { scaling: scaling(&config.rope.kind, &keys, config, count)?, ..rope })
}

/// The rotary embedding of blocks with a window, for families that give them their own: unscaled.
pub(super) fn local(config: &Config, default_theta: f64) -> Result<Rope> {
    let nested = match config.keys().object("rope_parameters")? {
        Some(parameters) => parameters.object("sliding_attention")?,
        None => None,
    };
    let Some(keys) = nested else { return Ok(Rope::new(default_theta)) };
    match keys.text("rope_type")?.as_deref() {
        None | Some("default") => Ok(Rope::new(keys.positive("rope_theta")?.unwrap_or(default_theta))),
        Some(other) => refuse("rope_parameters.sliding_attention.rope_type", "`default`", other),
    }
}

fn scaling(kind: &str, keys: &Keys<'_>, config: &Config, count: usize) -> Result<RopeScaling> {
    let required = |key: &str| -> Result<f64> {
        keys.positive(key)?.ok_or_else(|| keys.error(key, &format!("a positive number for `{kind}`"), "nothing"))
    };
    // Phi writes the first context beside the rule instead of inside; there it has priority.
    let original = match config.keys().size("original_max_position_embeddings")? {
        Some(original) => original,
        None => keys.size("original_max_position_embeddings")?.unwrap_or(config.max_position_embeddings),
    };
    let tokens = original as f64;
    let amplitude = keys.positive("attention_factor")?;
    let kind = match (config.model_type.as_str(), kind) {
        ("phi3", "su" | "yarn") => "longrope",
        (_, kind) => kind,
    };
    Ok(match kind {
        // Within the trained length, which the position tables end at, `dynamic` is the plain embedding.
        "default" | "dynamic" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: required("factor")? },
        "llama3" => {
            let (low, high) = (required("low_freq_factor")?, required("high_freq_factor")?);
            if low >= high {
                return Err(keys.error("high_freq_factor", &format!("more than `low_freq_factor` = {low}"), high));
            }
            RopeScaling::Llama3 { factor: required("factor")?, low, high, original: tokens }
        }
        "yarn" => {
            let factor = required("factor")?;
            let growth = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
            let amplitude = match (amplitude, keys.positive("mscale")?, keys.positive("mscale_all_dim")?) {
                (Some(amplitude), _, _) => amplitude,
                (None, Some(scale), Some(all)) => growth(scale) / growth(all),
                _ => growth(1.0),
            };
            RopeScaling::Yarn {
                factor,
                fast: keys.positive("beta_fast")?.unwrap_or(32.0),
                slow: keys.positive("beta_slow")?.unwrap_or(1.0),
                original: tokens,
                amplitude,
                truncate: keys.flag("truncate")?.unwrap_or(true),
            }
        }
        "longrope" => {
            let divisors = |key: &str| -> Result<Vec<f64>> {
                match keys.numbers(key)? {
                    Some(divisors) if divisors.len() == count && divisors.iter().all(|d| *d > 0.0) => Ok(divisors),
                    Some(divisors) => {
                        let expected = format!("{count} positive numbers, one for each frequency");
                        Err(keys.error(key, &expected, format!("{divisors:?}")))
                    }
                    None => Err(keys.error(key, &format!("{count} positive numbers"), "nothing")),
                }
            };
            let stretch = keys.positive("factor")?.unwrap_or(config.max_position_embeddings as f64 / tokens);
            let grown = || if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / tokens.ln()).sqrt() };
            RopeScaling::Long {
                short: divisors("short_factor")?,
                long: divisors("long_factor")?,
                original,
                amplitude: amplitude.unwrap_or_else(grown),
            }
        }
        other => return Err(Error::input(CONFIG, format!("`rope_type`: expected {RULES}, got `{other}`"))),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(rule: Value, changes: Value) -> Result<Rope> {
        let mut raw = json!({
            "model_type": "llama", "vocab_size": 16, "hidden_size": 32, "intermediate_size": 12, "num_hidden_layers": 1,
            "num_attention_heads": 4, "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "rope_theta": 10000.0,
            "rope_scaling": rule,
        });
        for (key, value) in changes.as_object().unwrap() {
            raw[key] = value.clone();
        }
        global(&Config::parse(Path::new(CONFIG), raw, None)?)
    }

    #[test]
    fn the_first_context_is_the_models_where_none_is_given() {
        let rule = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
        let expected = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 64.0 };
        assert_eq!(read(rule, json!({})).unwrap().scaling, expected);
    }

    #[test]
    fn yarn_grows_with_the_logarithm_of_its_factor() {
        let amplitude = |extra: Value| {
            let mut rule = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16});
            for (key, value) in extra.as_object().unwrap() {
                rule[key] = value.clone();
            }
            match read(rule, json!({})).unwrap().scaling {
                RopeScaling::Yarn { amplitude, original, .. } => (amplitude, original),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(amplitude(json!({})), (0.1 * 4_f64.ln() + 1.0, 16.0));
        assert_eq!(amplitude(json!({"mscale": 1.0, "mscale_all_dim": 1.0})).0, 1.0);
        assert_eq!(amplitude(json!({"attention_factor": 1.5})).0, 1.5);
    }

    #[test]
    fn phis_old_names_mean_longrope_and_its_first_context_lies_outside() {
        let rule = json!({"type": "su", "short_factor": vec![1.0; 4], "long_factor": vec![2.0; 4]});
        let changes = json!({"model_type": "phi3", "original_max_position_embeddings": 16});
        match read(rule, changes).unwrap().scaling {
            RopeScaling::Long { original, amplitude, .. } => {
                assert_eq!((original, amplitude), (16, (1.0 + 4_f64.ln() / 16_f64.ln()).sqrt()));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rules_that_lack_something_say_what() {
        for (rule, expected) in [
            (json!({"type": "longrope", "short_factor": [1.0]}), "`short_factor`: expected 4 positive numbers"),
            (json!({"type": "yarn"}), "`factor`: expected a positive number for `yarn`"),
            (
                json!({"type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 1}),
                "`high_freq_factor`: expected more than `low_freq_factor` = 4",
            ),
            (json!({"type": "default", "partial_rotary_factor": 1.5}), "`partial_rotary_factor`: expected a share"),
        ] {
            let text = read(rule, json!({})).unwrap_err().to_string();
            assert!(text.contains(expected), "{expected:?} not in {text:?}");
        }
    }
}
