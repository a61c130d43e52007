//! ModelOpt declares its quantization in two files; loaders read one or the other, so they must say the same.

use serde_json::Value;

use super::Findings;
use super::table::Table;
use crate::checkpoint::modelopt::{Declaration, FILE, METHOD};

/// Compares `config.json` with `hf_quant_config.json` where both are there.
pub(super) fn check(table: &Table<'_>, findings: &mut Findings) {
    let Some(checkpoint) = table.checkpoint() else { return };
    let Some(file) = checkpoint.modelopt_file() else { return };
    let config = checkpoint.config().get("quantization_config").filter(|v| !v.is_null());
    let Some(config) = config else { return };
    if config.get("quant_method").and_then(Value::as_str) != Some(METHOD) {
        let observed = format!("present beside another quant_method: {}", config["quant_method"]);
        findings.defect("declaration", FILE, observed, "config.json to declare quant_method modelopt");
        return;
    }
    let parse = |value: &Value| value.as_object().and_then(|o| Declaration::parse(o).ok());
    let (Some(by_config), Some(by_file)) = (parse(config), parse(file)) else {
        findings.defect("declaration", FILE, "not a declaration of ModelOpt", "the keys of config.json");
        return;
    };
    let sorted = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort();
        names
    };
    let mut differ = |what: &str, file: String, config: String| {
        if file != config {
            findings.defect(
                "declaration",
                format!("{FILE} {what}"),
                file,
                format!("{config} as in config.json"),
            );
        }
    };
    differ("quant_algo", format!("{:?}", by_file.algorithm), format!("{:?}", by_config.algorithm));
    differ("kv_cache_quant_algo", format!("{:?}", by_file.kv_cache), format!("{:?}", by_config.kv_cache));
    // A mixture has no list of exclusions in the file.
    if by_file.layers.is_empty() {
        let names = |d: &Declaration| sorted(&d.exclude).join(", ");
        differ("exclude_modules", names(&by_file), names(&by_config));
    } else if by_file.layers != by_config.layers {
        differ("quantized_layers", "another list".to_owned(), "the list".to_owned());
    }
}
