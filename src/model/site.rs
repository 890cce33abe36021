//! Names of places in a decoder, as TransformerLens has them: `blocks.12.hook_resid_pre`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Error;

/// A hook point within a block. Activations are `[batch, pos, d_model]`, but [`Point::Z`] is `[batch, pos, n_heads · head_dim]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Point {
    /// `hook_resid_pre`: the block's input.
    ResidPre,
    /// `hook_z`: the heads' outputs, the input of `o_proj`.
    Z,
    /// `hook_attn_out`: what attention adds to the residual stream.
    AttnOut,
    /// `hook_resid_mid`: the stream between attention and the feed-forward part.
    ResidMid,
    /// `hook_mlp_out`: what the feed-forward part adds.
    MlpOut,
    /// `hook_resid_post`: the block's output.
    ResidPost,
}

impl Point {
    const NAMES: [(Self, &'static str); 6] = [
        (Self::ResidPre, "hook_resid_pre"),
        (Self::Z, "hook_z"),
        (Self::AttnOut, "hook_attn_out"),
        (Self::ResidMid, "hook_resid_mid"),
        (Self::MlpOut, "hook_mlp_out"),
        (Self::ResidPost, "hook_resid_post"),
    ];
}

/// A place in a decoder: block index and hook point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Site {
    /// 0-based block index.
    pub layer: usize,
    /// Hook point in that block.
    pub point: Point,
}

impl Site {
    /// `point` of block `layer`.
    pub const fn new(layer: usize, point: Point) -> Self {
        Self { layer, point }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Point::NAMES.iter().find(|(point, _)| *point == self.point).map_or("", |(_, name)| name);
        write!(f, "blocks.{}.{name}", self.layer)
    }
}

impl FromStr for Site {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = || {
            let (layer, name) = text.strip_prefix("blocks.")?.split_once('.')?;
            let (point, _) = Point::NAMES.iter().find(|(_, known)| *known == name)?;
            Some(Self::new(layer.parse().ok()?, *point))
        };
        parse().ok_or_else(|| Error::input(text, "expected a site such as `blocks.3.hook_resid_pre`"))
    }
}

impl From<Site> for String {
    fn from(site: Site) -> Self {
        site.to_string()
    }
}

impl TryFrom<String> for Site {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for (point, _) in Point::NAMES {
            let site = Site::new(12, point);
            assert_eq!(site.to_string().parse::<Site>().unwrap(), site);
        }
        assert_eq!(Site::new(3, Point::Z).to_string(), "blocks.3.hook_z");
        assert!("blocks.x.hook_z".parse::<Site>().is_err());
    }
}
