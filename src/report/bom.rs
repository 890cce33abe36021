//! The bill of materials of a hardened model, for people whose tools read one: which model was changed, by what, and what was
//! measured on the result.
//!
//! *Source*: CycloneDX 1.6, component type `machine-learning-model` with its model card. There is no time and no random number in
//! it, since a published folder comes out the same whenever it is made; the serial number is taken from the digests.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::interval::Measured;
use super::limit::limits;
use super::schema::{AttackRow, Report, UtilityRow};
use super::wording::blocks;

/// Where the bill lies in a published folder.
pub const BOM_FILE: &str = "immunisation/bom.cdx.json";

/// The bill of `report`, made by the recipe file of that SHA-256; `family` is the model's type, such as `llama`.
#[must_use]
pub fn bom(report: &Report, family: &str, recipe: &str) -> String {
    let base = format!("base:{}", report.base.source);
    let metrics: Vec<Value> = report.attacks.iter().map(attack).chain(report.utility.iter().map(utility)).collect();
    let bill = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": serial(&report.hardened.digests),
        "version": 1,
        "metadata": {
            "tools": {"components": [
                {"type": "application", "name": report.tool.name, "version": report.tool.version, "bom-ref": "tool"},
            ]},
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "hardened",
                "name": format!("{}, hardened", report.base.source),
                "modelCard": {
                    "modelParameters": {"task": "text-generation", "architectureFamily": family},
                    "quantitativeAnalysis": {"performanceMetrics": metrics},
                    "considerations": {"technicalLimitations": limits(report)},
                },
                "components": files("hardened", &report.hardened.digests),
                "properties": [
                    {"name": "immunise:verdict", "value": report.verdict.word()},
                    {"name": "immunise:tensors-changed", "value": report.hardened.delta.tensors_changed.to_string()},
                    {"name": "immunise:base-access", "value": json!(report.base.access).as_str()},
                    {"name": "immunise:seed", "value": report.seed.to_string()},
                ],
            },
        },
        "components": [
            {
                "type": "machine-learning-model",
                "bom-ref": base,
                "name": report.base.source,
                "version": report.base.revision.as_deref().unwrap_or("unversioned"),
                "components": files(&base, &report.base.digests),
            },
            {
                "type": "data",
                "bom-ref": "recipe",
                "name": "immunisation/recipe.yaml",
                "hashes": [{"alg": "SHA-256", "content": recipe}],
                "data": [{"type": "configuration", "name": "how the weights were changed and measured"}],
            },
        ],
        "dependencies": [{"ref": "hardened", "dependsOn": [base, "recipe", "tool"]}],
    });
    format!("{bill:#}\n")
}

fn files(of: &str, digests: &BTreeMap<String, String>) -> Vec<Value> {
    let file = |(name, digest): (&String, &String)| {
        json!({
            "type": "file", "bom-ref": format!("{of}/{name}"), "name": name,
            "hashes": [{"alg": "SHA-256", "content": digest}],
        })
    };
    digests.iter().map(file).collect()
}

/// A UUID of the last version, whose bits are the maker's own: the first ones of all digests.
fn serial(digests: &BTreeMap<String, String>) -> String {
    let mut bits = 0_u128;
    for digest in digests.values() {
        let head = digest.get(..32).and_then(|head| u128::from_str_radix(head, 16).ok()).unwrap_or_default();
        bits = bits.rotate_left(1) ^ head;
    }
    let versioned = (bits & !(0xf << 76) & !(0b11 << 62)) | (8 << 76) | (0b10 << 62);
    let hex = format!("{versioned:032x}");
    format!("urn:uuid:{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn attack(row: &AttackRow) -> Value {
    let knowledge = if row.adaptive { "re-fitted" } else { "carried over from the base" };
    let slice = format!("{}, {knowledge}, {} positions, {}", row.name, row.positions, blocks(&row.layers));
    metric("attack success rate", &slice, row.hardened.measured())
}

fn utility(row: &UtilityRow) -> Value {
    metric(&format!("{}, {}", row.metric, row.unit), &row.task, row.hardened)
}

/// Values are text in this format.
fn metric(kind: &str, slice: &str, measured: Measured) -> Value {
    json!({
        "type": kind,
        "slice": slice,
        "value": measured.value.to_string(),
        "confidenceInterval": {"lowerBound": measured.low.to_string(), "upperBound": measured.high.to_string()},
    })
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn the_bill_names_what_went_in_and_what_was_measured() {
        let report = sample::report();
        let bill: Value = serde_json::from_str(&bom(&report, "llama", &"0".repeat(64))).unwrap();
        let model = &bill["metadata"]["component"];
        assert_eq!(model["components"][0]["hashes"][0]["content"], report.hardened.digests["model.safetensors"]);
        assert_eq!(bill["components"][0]["name"], report.base.source);
        let metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"].as_array().unwrap();
        assert_eq!(metrics.len(), report.attacks.len() + report.utility.len());
        let slice = "noreft r2 p80, re-fitted, all positions, block 0";
        let row = metrics.iter().find(|metric| metric["slice"] == slice).unwrap();
        assert_eq!(row["value"], report.attacks[1].hardened.asr.to_string());
        assert_eq!(row["confidenceInterval"]["upperBound"], report.attacks[1].hardened.high.to_string());
        let limits = model["modelCard"]["considerations"]["technicalLimitations"].as_array().unwrap();
        assert!(limits.iter().any(|limit| limit.as_str().unwrap().contains("Fine-tuning")));
    }

    #[test]
    fn the_serial_number_is_a_uuid_of_the_hardened_files() {
        let report = sample::report();
        let here = serial(&report.hardened.digests);
        assert_ne!(here, serial(&BTreeMap::from([("model.safetensors".into(), "f".repeat(64))])));
        let groups: Vec<usize> = here.strip_prefix("urn:uuid:").unwrap().split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12]);
        assert_eq!(here.as_bytes()["urn:uuid:".len() + 14], b'8', "{here}");
    }
}
