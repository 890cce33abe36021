//! Ranks that a model has no room for, found before any work.
//!
//! A change of a weight has at most the rank of the smaller of its two widths, and an edit of the stream at most that of the
//! stream. Maps of a block differ, so a stage's rank may be above that of some; above that of all it is a slip of the pen.

use crate::attack::spec::{AttackKind, AttackSpec, Method};
use crate::defence::spec::Parameters;
use crate::model::{Blueprint, Module};
use crate::recipe::{Stage, Suite};
use crate::{Error, Result};

/// Refuses a rank of `stages` or of `suite` that a model of this shape has no room for.
///
/// # Errors
/// [`Error::Input`] naming the key, the stage or attack, the rank, and the largest there can be.
pub fn check_ranks(stages: &[Stage], suite: &Suite, blueprint: &Blueprint) -> Result<()> {
    let of_map = |module| blueprint.weight_shape(module).into_iter().min();
    let weights =
        ("the smaller width of the model's largest weights", Module::ALL.into_iter().filter_map(of_map).max());
    let stream = ("the width of the model's stream", Some(blueprint.d_model));
    let check = |key: String, kind: &str, rank: usize, (what, most): (&str, Option<usize>)| match most {
        Some(most) if rank > most => {
            Err(Error::input(key, format!("expected a rank of `{kind}` up to {most}, {what}, got {rank}")))
        }
        _ => Ok(()),
    };
    for (i, stage) in stages.iter().enumerate() {
        let kind = stage.kind();
        let check = |key: &str, rank, limit| check(format!("stages.{i}.{key}"), kind, rank, limit);
        match stage {
            Stage::Et(spec, _) | Stage::EtFaithful(spec, _) => {
                check("rank", spec.rank, weights)?;
                check("attack_rank", spec.attack_rank, stream)?;
            }
            Stage::EtClosed(spec, _) | Stage::EtPropagated(spec, _) => {
                check("rank", spec.rank, weights)?;
                check("attack_rank", spec.attack_rank, stream)?;
            }
            Stage::Adversarial(spec, _) => {
                if spec.train == Parameters::Factors {
                    check("rank", spec.rank, weights)?;
                }
                spec.ranks.iter().enumerate().try_for_each(|(n, rank)| check(&format!("ranks.{n}"), *rank, stream))?;
            }
            Stage::HdrTaskvec(..) | Stage::HdrTopk(..) => {}
        }
    }
    for (i, attack) in suite.attacks.iter().enumerate() {
        let limit = match attack.kind {
            AttackKind::Lora => weights,
            _ if edits_the_stream(attack) => stream,
            _ => continue,
        };
        check(format!("suite.attacks.{i}.rank"), super::cell::kind_name(attack.kind), attack.rank, limit)?;
    }
    Ok(())
}

/// Whether the rank is that of an edit of this model's stream; a transferred one is of another's.
fn edits_the_stream(attack: &AttackSpec) -> bool {
    matches!(attack.kind.method(), Method::Learned(_))
        || matches!(attack.kind, AttackKind::SubspaceAblation | AttackKind::Random)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::recipe::Recipe;

    fn check(stage: &str, attack: &str) -> Option<String> {
        let blueprint =
            Blueprint { d_model: 16, n_heads: 2, n_kv_heads: 1, head_dim: 8, d_ff: 24, ..Blueprint::default() };
        let text = format!("schema: 1\nname: x\nsuite: {{attacks: [{attack}]}}\nstages: [{stage}]\n");
        let recipe = Recipe::parse(&text, Path::new("x")).unwrap();
        check_ranks(&recipe.stages, &recipe.suite, &blueprint).err().map(|error| error.to_string())
    }

    #[test]
    fn a_rank_that_nothing_has_room_for_is_refused_by_key() {
        const ET: &str = "{kind: et, rank: 16}";
        const NOREFT: &str = "{kind: noreft, rank: 16}";
        // Above what keys and values have, which are narrower.
        assert_eq!(check(ET, NOREFT), None);
        for (stage, attack, key, kind) in [
            ("{kind: et, rank: 17}", NOREFT, "stages.0.rank", "et"),
            ("{kind: et, attack_rank: 17}", NOREFT, "stages.0.attack_rank", "et"),
            ("{kind: et-closed, rank: 17}", NOREFT, "stages.0.rank", "et-closed"),
            ("{kind: adversarial, rank: 17}", NOREFT, "stages.0.rank", "adversarial"),
            ("{kind: adversarial, ranks: [2, 17]}", NOREFT, "stages.0.ranks.1", "adversarial"),
            (ET, "{kind: loreft, rank: 17}", "suite.attacks.0.rank", "loreft"),
            (ET, "{kind: subspace-ablation, rank: 17}", "suite.attacks.0.rank", "subspace-ablation"),
            (ET, "{kind: lora, rank: 17, knowledge: [adaptive]}", "suite.attacks.0.rank", "lora"),
        ] {
            let said = check(stage, attack).unwrap_or_default();
            assert!(said.starts_with(&format!("{key}: expected a rank of `{kind}` up to 16, ")), "{stage}: {said}");
            assert!(said.ends_with("got 17"), "{said}");
        }
        assert_eq!(check("{kind: adversarial, train: weights, rank: 17}", NOREFT), None, "it has none");
        assert_eq!(check("{kind: adversarial, rank: 0}", "{kind: identity}"), None, "full rank");
    }
}
