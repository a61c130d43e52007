//! The declared KV cache: 8-bit floats, symmetric, one scale a tensor or a head (checkpoint-formats §4.10).

use serde_json::Value;

use crate::checkpoint::QuantizationConfig;
use crate::ops::float_dtype::FloatDtype;
use crate::scan::Findings;
use crate::scan::table::{Table, shown};

pub(super) fn check(table: &Table<'_>, config: &QuantizationConfig, findings: &mut Findings) {
    if let Some(scheme) = &config.kv_cache_scheme {
        declared(scheme, findings);
    }
    let mut scales = 0;
    for (name, info) in &table.tensors {
        let (other, module) = match (name.strip_suffix(".k_scale"), name.strip_suffix(".v_scale")) {
            (Some(module), _) => ("v_scale", module),
            (_, Some(module)) => ("k_scale", module),
            _ => continue,
        };
        scales += 1;
        // ModelOpt hangs them on k_proj and v_proj, where each has its own parent.
        let stands_alone = module.ends_with(".k_proj") || module.ends_with(".v_proj");
        if !stands_alone && !table.tensors.contains_key(format!("{module}.{other}").as_str()) {
            findings.defect("scales", format!("{module}.{other}"), "missing", format!("one beside {name}"));
        }
        let fits = matches!(info.shape.as_slice(), [] | [1] | [_, 1, 1]);
        if !fits || FloatDtype::of(info.dtype).is_none() {
            let observed = shown(info.dtype, &info.shape);
            findings.defect("shapes", *name, observed, "one float, or [heads, 1, 1]");
        }
    }
    match (&config.kv_cache_scheme, scales) {
        (None, 1..) => {
            let expected = "kv_cache_scheme, without which engines leave the scales unused";
            findings.note("declaration", "config.json kv_cache_scheme", "none", expected);
        }
        (Some(_), 0) => {
            let expected = "k_scale and v_scale; without them engines take 1";
            findings.note("scales", "KV cache", "no scales", expected);
        }
        _ => {}
    }
}

fn declared(scheme: &Value, findings: &mut Findings) {
    let expected: [(&str, &[Value]); 4] = [
        ("num_bits", &[8.into()]),
        ("type", &["float".into()]),
        ("symmetric", &[true.into()]),
        ("strategy", &["tensor".into(), "attn_head".into()]),
    ];
    for (key, allowed) in expected {
        // Left out means compressed-tensors' default, which is right for all but the type.
        let default_fits = key != "type";
        let found = scheme.get(key).filter(|v| !v.is_null());
        if found.map_or(!default_fits, |v| !allowed.contains(v)) {
            let observed = found.map_or_else(|| "int, the default".to_owned(), Value::to_string);
            let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
            let subject = format!("config.json kv_cache_scheme.{key}");
            findings.defect("declaration", subject, observed, allowed.join(" or "));
        }
    }
}
