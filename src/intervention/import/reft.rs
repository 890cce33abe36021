//! Interventions of pyreft and pyvene: a folder with `config.json` and one file of tensors for each site.
//!
//! LoReFT is `h + R(Wh + b − Rᵀh)` with R `[d, r]`, NoReFT `h + W₂ᵀ(W₁h + b₁ − W₂h − b₂)`, NodiReFT the same without what is
//! subtracted. Which one a file is stands in the configuration: LoReFT and DiReFT hold tensors of the same shapes. The
//! forms whose rotation is stored as PyTorch's orthogonal parametrisation (DiReFT, LobiReFT, ConsReFT) are refused, and the
//! positions are the user's to say: the library gets them with every prompt and doesn't store them.

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::ArrayD;
use regex::Regex;
use serde_json::Value;

use super::directions::one_or_several;
use super::{Op, Terms, json};
use crate::checkpoint::torch_file::{self, Tensors};
use crate::intervention::Edit;
use crate::model::{Blueprint, Point, Site};
use crate::{Error, Result};

pub(super) const KEYS: &str = "sorted_keys";

pub(super) fn load(path: &Path, terms: &Terms, blueprint: &Blueprint) -> Result<(Edit, Vec<usize>)> {
    terms.op(path, Some(Op::Affine), &[Op::Affine])?;
    let config_path = path.join("config.json");
    let config = json(&config_path)?;
    let texts = |key: &str| -> Result<Vec<String>> {
        let wrong = || Error::file(&config_path, format!("`{key}`: expected a list of names"));
        let list = config.get(key).and_then(Value::as_array).filter(|list| !list.is_empty()).ok_or_else(wrong)?;
        list.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
    };
    let (keys, kinds) = (texts(KEYS)?, texts("intervention_types")?);
    if keys.len() != kinds.len() {
        let problem = format!("expected an intervention type for each of {} keys, got {}", keys.len(), kinds.len());
        return Err(Error::file(&config_path, problem));
    }
    let (mut edits, mut layers) = (vec![], vec![]);
    for (key, kind) in keys.iter().zip(&kinds) {
        let named = place(key).ok_or_else(|| {
            Error::file(
                &config_path,
                format!("`{KEYS}`: expected input, output, attention or feed-forward output of a block, got `{key}`"),
            )
        })?;
        let layer = (named.0 as i64).saturating_add(terms.layer_offset);
        let layer = usize::try_from(layer).ok().filter(|layer| *layer < blueprint.n_layers).ok_or_else(|| {
            let problem = format!("`{key}`: expected a block below {}, got {layer}", blueprint.n_layers);
            Error::file(&config_path, problem).hint("was it made for this model?")
        })?;
        if terms.layers.as_ref().is_some_and(|wanted| !wanted.contains(&layer)) {
            continue;
        }
        let file = path.join(format!("intkey_{key}.bin"));
        let Tensors::Named(tensors) = torch_file::load(&file)? else {
            return Err(Error::file(&file, "expected tensors by name, got one without"));
        };
        let factors = Factors { path: &file, tensors, width: blueprint.d_model };
        edits.push(factors.edit(kind, Site::new(layer, named.1), terms.scale.unwrap_or(1.0))?);
        layers.push(layer);
    }
    if let Some(missing) = terms.layers.iter().flatten().find(|layer| !layers.contains(layer)) {
        return Err(Error::file(path, format!("`layers`: expected blocks that it edits, got {missing}")));
    }
    layers.sort_unstable();
    layers.dedup();
    Ok((one_or_several(edits), layers))
}

/// Block and hook point of `layer_12_comp_block_output_unit_pos_nunit_1#0` or
/// `comp_model_layers[12]_output_unit_pos_nunit_1#0`.
fn place(key: &str) -> Option<(usize, Point)> {
    const UNIT: &str = r"_unit_pos_nunit_\d+#\d+$";
    let by_number = Regex::new(&format!(r"^layer_(\d{{1,6}})_comp_(\w+?){UNIT}")).ok()?;
    let by_path = Regex::new(&format!(r"^comp_model_layers\[(\d{{1,6}})\]_(\w+?){UNIT}")).ok()?;
    let found = by_number.captures(key).or_else(|| by_path.captures(key))?;
    let point = match &found[2] {
        "block_output" | "output" => Point::ResidPost,
        "block_input" | "input" => Point::ResidPre,
        "attention_output" | "self_attn_output" => Point::AttnOut,
        "mlp_output" => Point::MlpOut,
        _ => return None,
    };
    Some((found[1].parse().ok()?, point))
}

/// The tensors of one site.
struct Factors<'a> {
    path: &'a Path,
    tensors: BTreeMap<String, ArrayD<f32>>,
    width: usize,
}

impl Factors<'_> {
    /// `h + s·upᵀ(down·h + bias)`.
    fn edit(&self, kind: &str, site: Site, scale: f64) -> Result<Edit> {
        let name = kind.trim_end_matches("'>").rsplit('.').next().unwrap_or(kind);
        let (up, down, bias, rank) = match name {
            "LoreftIntervention" => {
                let (source, rank) = self.matrix("weight")?;
                let rotation = self.tensor("rotate_layer")?;
                if rotation.shape() != [self.width, rank] {
                    return Err(self.wrong("rotate_layer", &[self.width, rank], rotation.shape()));
                }
                let up: Vec<f32> = rotation.t().iter().copied().collect();
                let down = source.iter().zip(&up).map(|(w, r)| w - r).collect();
                (up, down, self.bias("bias", rank)?, rank)
            }
            "NoreftIntervention" => {
                let ((up, rank), (source, other)) =
                    (self.matrix("proj_layer.weight")?, self.matrix("learned_source.weight")?);
                if other != rank {
                    return Err(self.wrong("learned_source.weight", &[rank, self.width], &[other, self.width]));
                }
                let down = source.iter().zip(&up).map(|(w, p)| w - p).collect();
                let mut bias = self.bias("learned_source.bias", rank)?;
                if self.tensors.contains_key("proj_layer.bias") {
                    bias.iter_mut().zip(self.bias("proj_layer.bias", rank)?).for_each(|(b, p)| *b -= p);
                }
                (up, down, bias, rank)
            }
            "NodireftIntervention" => {
                let ((up, rank), (down, other)) =
                    (self.matrix("proj_layer.weight")?, self.matrix("learned_source.weight")?);
                if other != rank {
                    return Err(self.wrong("learned_source.weight", &[rank, self.width], &[other, self.width]));
                }
                (up, down, self.bias("learned_source.bias", rank)?, rank)
            }
            other => {
                let problem = format!("expected LoReFT, NoReFT or NodiReFT, got `{other}`");
                return Err(Error::file(self.path, problem)
                    .hint("other interventions store a parametrised rotation or act in another way"));
            }
        };
        let up: Vec<f32> = up.iter().map(|v| (f64::from(*v) * scale) as f32).collect();
        if !up.iter().chain(&down).chain(&bias).all(|v: &f32| v.is_finite()) {
            return Err(Error::file(self.path, "expected finite numbers, got NaN or infinity"));
        }
        Ok(Edit::Affine { site, rank, up, down, bias })
    }

    fn tensor(&self, name: &str) -> Result<&ArrayD<f32>> {
        self.tensors.get(name).ok_or_else(|| Error::file(self.path, format!("expected a tensor `{name}`, got none")))
    }

    /// A tensor `[r, d_model]` and its r.
    fn matrix(&self, name: &str) -> Result<(Vec<f32>, usize)> {
        let tensor = self.tensor(name)?;
        match tensor.shape() {
            [rank, width] if *width == self.width && *rank > 0 => Ok((tensor.iter().copied().collect(), *rank)),
            other => Err(self.wrong(name, &[1, self.width], other)),
        }
    }

    fn bias(&self, name: &str, rank: usize) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        if tensor.shape() != [rank] {
            return Err(self.wrong(name, &[rank], tensor.shape()));
        }
        Ok(tensor.iter().copied().collect())
    }

    fn wrong(&self, name: &str, expected: &[usize], got: &[usize]) -> Error {
        Error::file(self.path, format!("tensor `{name}`: expected shape {expected:?}, got {got:?}"))
            .hint("was it made for this model?")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_say_their_site() {
        let site = |key: &str| place(key).map(|(layer, point)| Site::new(layer, point).to_string());
        let key = |component: &str| format!("{component}_unit_pos_nunit_1#0");
        assert_eq!(site(&key("layer_12_comp_block_output")).as_deref(), Some("blocks.12.hook_resid_post"));
        assert_eq!(site(&key("layer_0_comp_block_input")).as_deref(), Some("blocks.0.hook_resid_pre"));
        assert_eq!(site(&key("comp_model_layers[2]_output")).as_deref(), Some("blocks.2.hook_resid_post"));
        for other in ["layer_1_comp_head_attention_value_output", "../../etc/passwd", "layer_x_comp_block_output"] {
            assert_eq!(site(&key(other)), None, "{other}");
        }
        assert_eq!(site("layer_1_comp_block_output_unit_pos_nunit_1#0/../x"), None);
    }
}
