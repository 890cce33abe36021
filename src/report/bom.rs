//! The bill of materials of a hardened model, for people whose tools read one: which model was changed, by what, and what was
//! measured on the result.
//!
//! *Source*: CycloneDX 1.6, component type `machine-learning-model` with its model card. There is no time and no random number in
//! it, since a published folder comes out the same whenever it is made; the serial number is taken from the content.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::interval::Measured;
use super::limit::{limits, not_tested};
use super::schema::{AttackRow, Report, UtilityRow};
use super::wording::{blocks, percent};

/// Where the bill lies in a published folder.
pub const BOM_FILE: &str = "immunisation/bom.cdx.json";

/// The bill of `report`, made by the recipe file of that SHA-256; `family` is the model's type, such as `llama`.
#[must_use]
pub fn bom(report: &Report, family: &str, recipe: &str) -> String {
    let base = format!("base:{}", report.base.source);
    let attacks = report.attacks.iter().filter(|row| row.hardened.n > 0).map(attack);
    let utility = report.utility.iter().filter(|row| row.hardened.n > 0).map(utility);
    let metrics: Vec<Value> = attacks.chain(utility).collect();
    let limits: Vec<String> = limits(report)
        .into_iter()
        .chain(not_tested(report).into_iter().map(|gap| format!("Not tested: {gap}")))
        .collect();
    let mut bill = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
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
                    "considerations": {"technicalLimitations": limits},
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
    bill["serialNumber"] = serial(&bill.to_string()).into();
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

/// A UUID of version 8, whose bits are the maker's own: the first ones of the content's SHA-256.
fn serial(content: &str) -> String {
    let digest = Sha256::digest(content.as_bytes());
    let mut hex: Vec<u8> = digest.iter().take(16).flat_map(|byte| format!("{byte:02x}").into_bytes()).collect();
    (hex[12], hex[16]) = (b'8', b'8');
    let hex = String::from_utf8_lossy(&hex);
    format!("urn:uuid:{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn attack(row: &AttackRow) -> Value {
    let knowledge = if row.adaptive { "re-fitted" } else { "carried over from the base" };
    let base = match row.base.map(|base| base.by(row.rates)) {
        Some(base) if row.applicable => format!("un-hardened {}", percent(base.asr)),
        Some(base) => format!("un-hardened {}, too little to count", percent(base.asr)),
        None => "un-hardened not measured".into(),
    };
    let hardened = row.hardened.by(row.rates);
    let slice = format!(
        "{}, {knowledge}, {} positions, {}, n = {}; {base}",
        row.name,
        row.positions,
        blocks(&row.layers),
        hardened.n
    );
    metric("attack success rate", &slice, hardened.measured())
}

fn utility(row: &UtilityRow) -> Value {
    let base = row.base.map_or_else(String::new, |base| format!("; un-hardened {}", base.value));
    metric(
        &format!("{}, {}", row.metric, row.unit),
        &format!("{}, n = {}{base}", row.task, row.hardened.n),
        row.hardened,
    )
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
        let slice = "noreft r2 p80, re-fitted, all positions, block 0, n = 200; un-hardened 98.5%";
        let row = metrics.iter().find(|metric| metric["slice"] == slice).unwrap_or_else(|| panic!("{metrics:#?}"));
        assert_eq!(row["value"], report.attacks[1].hardened.asr.to_string());
        assert_eq!(row["confidenceInterval"]["upperBound"], report.attacks[1].hardened.high.to_string());
        let limits = model["modelCard"]["considerations"]["technicalLimitations"].as_array().unwrap();
        assert!(limits.iter().any(|limit| limit.as_str().unwrap().contains("Fine-tuning")));
        assert!(limits.iter().any(|limit| limit.as_str().unwrap().starts_with("Not tested: ")));
    }

    #[test]
    fn the_serial_number_is_a_uuid_of_all_that_the_bill_says() {
        let mut report = sample::report();
        let of = |report: &Report| -> String {
            let bill: Value = serde_json::from_str(&bom(report, "llama", &"0".repeat(64))).unwrap();
            bill["serialNumber"].as_str().unwrap().to_owned()
        };
        let here = of(&report);
        assert_eq!(here, of(&report));
        let groups: Vec<usize> = here.strip_prefix("urn:uuid:").unwrap().split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12]);
        assert_eq!(here.as_bytes()["urn:uuid:".len() + 14], b'8', "{here}");
        report.attacks[0].hardened.asr += 0.01;
        assert_ne!(here, of(&report));
    }
}
