//! The kinds of defence stages: one line each in the table at the end.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::fields::{Problems, Section};
use super::validate::Checked;
use crate::defence::spec::{AdversarialSpec, EtClosedSpec, EtSpec, HarmVectorSpec};
use crate::intervention::Layers;

/// Writes `{kind, layers, …the spec's own keys}`.
fn write<S: Serializer>(s: S, kind: &str, layers: &Layers, spec: &impl Serialize) -> Result<S::Ok, S::Error> {
    let mut map = Map::new();
    map.insert("kind".into(), kind.into());
    map.insert("layers".into(), serde_json::to_value(layers).map_err(S::Error::custom)?);
    if let Value::Object(own) = serde_json::to_value(spec).map_err(S::Error::custom)? {
        map.extend(own);
    }
    map.serialize(s)
}

/// The spec's schema with `kind` and `layers` added, described by `about`.
fn describe<T: JsonSchema>(generator: &mut SchemaGenerator, kind: &str, about: &str) -> Value {
    let mut schema = T::json_schema(generator).to_value();
    let layers = generator.subschema_for::<Layers>().to_value();
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.insert("kind".into(), json!({"const": kind}));
        properties.insert("layers".into(), layers);
    }
    schema["required"] = json!(["kind"]);
    schema["description"] = json!(about.trim());
    schema
}

macro_rules! stages {
    ($(#[doc = $about:literal] $kind:literal => $variant:ident($spec:ty),)*) => {
        /// One defence stage of a recipe with the blocks it acts on.
        #[derive(Debug, Clone, PartialEq)]
        #[expect(clippy::large_enum_variant, reason = "a recipe has a handful of stages")]
        pub enum Stage {
            $(#[doc = $about] $variant($spec, Layers),)*
        }

        /// Every stage kind that a recipe can name.
        pub const STAGE_KINDS: &[&str] = &[$($kind),*];

        impl Stage {
            /// Name in the registry.
            #[must_use]
            pub fn kind(&self) -> &'static str {
                match self { $(Self::$variant(..) => $kind,)* }
            }

            /// Blocks that the stage acts on.
            #[must_use]
            pub fn layers(&self) -> &Layers {
                match self { $(Self::$variant(_, layers) => layers,)* }
            }

            /// Reads the stage's own keys; the section's `kind` and `layers` are taken already.
            pub(super) fn read(kind: &str, layers: Layers, section: Section<'_>, problems: &mut Problems) -> Option<Self> {
                match kind {
                    $($kind => {
                        let at = section.path().clone();
                        let spec: $spec = section.all(&[], problems)?;
                        spec.check(&at, problems);
                        Some(Self::$variant(spec, layers))
                    })*
                    _ => None,
                }
            }
        }

        impl Serialize for Stage {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                match self { $(Self::$variant(spec, layers) => write(s, $kind, layers, spec),)* }
            }
        }

        impl JsonSchema for Stage {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                "Stage".into()
            }

            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                let kinds = vec![$(describe::<$spec>(generator, $kind, $about)),*];
                let mut schema = Schema::default();
                schema.insert("oneOf".into(), Value::Array(kinds));
                schema
            }
        }
    };
}

stages! {
    /// Block-local neutralisation with its intended mathematics.
    "et" => Et(EtSpec),
    /// Block-local neutralisation with the reference's faults, for comparison only.
    "et-faithful" => EtFaithful(EtSpec),
    /// Block-local neutralisation in closed form, map by map.
    "et-closed" => EtClosed(EtClosedSpec),
    /// `et-closed` where each block also meets what edits of the stage's blocks before it have become on the way.
    "et-propagated" => EtPropagated(EtClosedSpec),
    /// What complying with hazards changes in the weights, taken out of them.
    "hdr-taskvec" => HdrTaskvec(HarmVectorSpec),
    /// The largest numbers of what complying with hazards changes in the weights, taken out of them.
    "hdr-topk" => HdrTopk(HarmVectorSpec),
    /// Weights or adapters trained against edits that keep being re-trained.
    "adversarial" => Adversarial(AdversarialSpec),
}
