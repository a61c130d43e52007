//! `gate_ptq.py`: a checkpoint's validation summary.

use serde_json::{Value, json};

use super::{number, precision_bucket, recipes, shown};
use crate::gate::findings::Collector;
use crate::record::{FailureClass, Finding, GateName, GateReport};

/// Decides on `{source_bytes, output_bytes, recipe, layer_precision_counts, metadata_diffs}`; `recipe` overrides the
/// one in the summary.
pub fn ptq_summary(summary: &Value, recipe: Option<&str>) -> GateReport {
    let mut out = Collector::new(GateName::Ptq);
    if summary.as_object().is_none_or(serde_json::Map::is_empty) {
        out.add(config("summary", "summary").observed("empty or no object"));
        return out.report("");
    }
    size(&mut out, summary);
    let recipe = recipe.or_else(|| summary["recipe"].as_str()).unwrap_or_default();
    coverage(&mut out, &summary["layer_precision_counts"], recipe);
    metadata(&mut out, &summary["metadata_diffs"]);
    out.report(format!("checkpoint valid for recipe {recipe}"))
}

fn config(check: &str, subject: &str) -> Finding {
    Finding::new(GateName::Ptq, check, FailureClass::UserConfigError, subject)
}

fn failure(check: &str, subject: &str) -> Finding {
    Finding::new(GateName::Ptq, check, FailureClass::QuantCoverageFailure, subject)
}

fn size(out: &mut Collector, summary: &Value) {
    let bytes = |key: &str| number(summary.get(key)).filter(|bytes| *bytes > 0.0);
    let sizes = bytes("source_bytes").zip(bytes("output_bytes"));
    for key in ["source_bytes", "output_bytes"] {
        if bytes(key).is_none() {
            out.add(config("size", key).observed(shown(summary.get(key))).expected("a positive number"));
        }
    }
    let ratio = sizes.map(|(source, output)| output / source);
    if let Some((source, output)) = sizes.filter(|(source, output)| output >= source) {
        out.add(
            failure("size", "checkpoint")
                .observed(format!("{output} bytes, not smaller than the source"))
                .expected(format!("less than {source} bytes")),
        );
    }
    let (source, output) = (summary.get("source_bytes"), summary.get("output_bytes"));
    out.check("size", json!({"source_bytes": source, "output_bytes": output, "ratio": ratio}));
}

fn coverage(out: &mut Collector, counts: &Value, recipe: &str) {
    let bucket = precision_bucket(recipe);
    // Missing counts are 0, as upstream has it; anything else that is no count is an error in the file.
    let read = |key: &str| match counts.get(key) {
        None => Ok(0),
        Some(value) => value.as_u64().ok_or_else(|| value.to_string()),
    };
    let mut count = |key: &str| {
        read(key).unwrap_or_else(|found| {
            out.add(config("coverage", key).observed(found).expected("a count"));
            0
        })
    };
    let [covered, unquantized, mismatch] =
        [bucket.unwrap_or_default(), "unexpected_unquantized", "declaration_mismatch"].map(&mut count);
    match bucket {
        None => out.add(
            config("coverage", "recipe")
                .observed(format!("unknown recipe {recipe:?}"))
                .expected(format!("one of {}", recipes::known())),
        ),
        Some(bucket) if covered == 0 => out.add(
            Finding::new(GateName::Ptq, "coverage", FailureClass::ModelUnsupported, bucket)
                .observed("no layer has the recipe's precision: it matched nothing")
                .expected("at least one layer"),
        ),
        Some(_) => {}
    }
    for (key, count) in [("unexpected_unquantized", unquantized), ("declaration_mismatch", mismatch)] {
        if count > 0 {
            out.add(failure("coverage", key).observed(format!("{count} layers")).expected("0 layers"));
        }
    }
    out.check(
        "coverage",
        json!({
            "recipe": recipe,
            "bucket": bucket,
            "covered": covered,
            "unexpected_unquantized": unquantized,
            "declaration_mismatch": mismatch,
        }),
    );
}

fn metadata(out: &mut Collector, diffs: &Value) {
    let text = |diff: &Value| diff.as_str().map_or_else(|| diff.to_string(), str::to_owned);
    match diffs {
        Value::Null => {}
        Value::Array(diffs) => {
            out.add_list(diffs.iter().map(|diff| failure("metadata", &text(diff))).collect());
        }
        other => out.add(config("metadata", "metadata_diffs").observed(other.to_string()).expected("a list")),
    }
    out.check("metadata", json!({"diffs": diffs}));
}
