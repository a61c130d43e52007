//! Gate `ptq`: is the checkpoint what the recipe promised?
//!
//! - size: smaller than the source's tensors in BF16; smaller than the source on disk, where that is unquantized
//!   (otherwise the ratio is a note); within 1 % of the size predicted from headers and recipe.
//! - coverage: the config declares a quantization, and every module is what it declares. A recipe that matches
//!   nothing, or cannot make the model smaller, is MODEL_UNSUPPORTED.
//! - declaration, exclusions, experts, scales, fused sets, shapes, dtypes, values, names: no defect found by the scan.
//! - metadata: unchanged against the source, but for what quantizing itself changes.
//! - whatever could not be checked is INSUFFICIENT_EVIDENCE: a scan of headers alone is never ACCEPT.

use std::collections::BTreeMap;

use serde_json::json;

use super::findings::Collector;
use crate::base::units::human_bytes;
use crate::record::scan::{Defect, DiffKind, ScanRecord, SizeScan};
use crate::record::{FailureClass, Finding, GateName, GateReport};

/// Checks of the scan that report defects, so that each appears in the report also when it found nothing.
const DEFECT_CHECKS: [&str; 9] =
    ["declaration", "dtypes", "exclusions", "experts", "fused_sets", "names", "scales", "shapes", "values"];

/// Decides on a scan.
pub fn ptq(scan: &ScanRecord) -> GateReport {
    let mut out = Collector::new(GateName::Ptq);
    out.require_schema(scan.schema_version);
    size(&mut out, &scan.size);
    coverage(&mut out, scan);
    defects(&mut out, scan);
    metadata(&mut out, scan);
    not_checked(&mut out, scan);
    let ratio = scan.size.source_bf16_bytes.map_or(0.0, |source| ratio(scan.size.output_bytes, source));
    out.report(format!("{} modules quantized, {ratio:.3} of the size in BF16", scan.coverage.quantized))
        .about(&scan.checkpoint)
}

fn size(out: &mut Collector, size: &SizeScan) {
    let failure = |bytes| {
        Finding::new(GateName::Ptq, "size", FailureClass::QuantCoverageFailure, "checkpoint")
            .observed(human_bytes(bytes))
    };
    if size.output_bytes == 0 {
        out.add(failure(0).expected("tensors"));
    }
    match size.source_bf16_bytes {
        None => out.add(
            out.finding("size", FailureClass::InsufficientEvidence, "source")
                .observed("not scanned, so the size has nothing to be compared with")
                .hint("name the source checkpoint"),
        ),
        Some(bf16) if size.output_bytes >= bf16 => {
            out.add(failure(size.output_bytes).expected(format!("less than {} in BF16", human_bytes(bf16))));
        }
        Some(_) => {}
    }
    if let Some(source) = size.source_bytes.filter(|source| size.output_bytes >= *source) {
        let finding =
            failure(size.output_bytes).expected(format!("less than {} on disk", human_bytes(source)));
        out.add(if size.source_is_quantized { finding.as_note() } else { finding });
    }
    predicted_size(out, size, failure(size.output_bytes));
    out.check(
        "size",
        json!({
            "output_bytes": size.output_bytes,
            "source_bytes": size.source_bytes,
            "source_bf16_bytes": size.source_bf16_bytes,
            "predicted_bytes": size.predicted_bytes,
            "ratio": size.source_bytes.map(|source| ratio(size.output_bytes, source)),
            "ratio_bf16": size.source_bf16_bytes.map(|source| ratio(size.output_bytes, source)),
            "source_is_quantized": size.source_is_quantized,
            "bits_per_weight": size.bits_per_weight,
        }),
    );
}

fn predicted_size(out: &mut Collector, size: &SizeScan, failure: Finding) {
    let Some(predicted) = size.predicted_bytes else {
        // Whoever names no recipe does not ask whether the recipe was followed.
        out.add(
            out.finding("size", FailureClass::InsufficientEvidence, "predicted size")
                .observed("no recipe given, so none predicted")
                .as_note(),
        );
        return;
    };
    if u128::from(size.output_bytes.abs_diff(predicted)) * 100 > u128::from(predicted) {
        out.add(failure.expected(format!("{} ± 1 % as predicted", human_bytes(predicted))));
    }
    if let Some(bf16) = size.source_bf16_bytes.filter(|bf16| predicted >= *bf16) {
        out.add(
            out.finding("size", FailureClass::ModelUnsupported, "predicted size")
                .observed(human_bytes(predicted))
                .expected(format!("less than {} in BF16", human_bytes(bf16))),
        );
    }
}

fn coverage(out: &mut Collector, scan: &ScanRecord) {
    let seen = &scan.coverage;
    let failure =
        |subject: &str| Finding::new(GateName::Ptq, "coverage", FailureClass::QuantCoverageFailure, subject);
    if scan.quant_method.is_none() {
        out.add(failure("quantization_config").observed("config.json declares no quantization"));
    }
    let nothing_to_match = seen.recipe_targets == Some(0);
    let nothing_found =
        seen.quantized == 0 && scan.quant_method.is_some() && seen.unexpected_unquantized.is_empty();
    if nothing_to_match || nothing_found {
        out.add(
            out.finding("coverage", FailureClass::ModelUnsupported, "recipe")
                .observed("matched no module of this model")
                .expected("at least one quantized module")
                .hint("choose a recipe whose targets this model has, e.g. fp8_dynamic"),
        );
    }
    if let Some(targets) = seen.recipe_targets.filter(|targets| *targets != seen.quantized) {
        out.add(
            failure("quantized modules")
                .observed(seen.quantized.to_string())
                .expected(format!("{targets} targeted by the recipe")),
        );
    }
    let named = |names: &[String], what: &str| -> Vec<Finding> {
        names.iter().map(|name| failure(name).observed(what)).collect()
    };
    out.add_list(named(&seen.unexpected_unquantized, "unquantized, though declared quantized"));
    out.add_list(named(&seen.declaration_mismatch, "not quantized in the declared way"));
    out.check(
        "coverage",
        json!({
            "quant_method": scan.quant_method,
            "quantized": seen.quantized,
            "recipe_targets": seen.recipe_targets,
            "modules_by_precision": seen.modules_by_precision,
            "excluded": seen.excluded,
            "unexpected_unquantized": seen.unexpected_unquantized,
            "declaration_mismatch": seen.declaration_mismatch,
        }),
    );
}

fn defects(out: &mut Collector, scan: &ScanRecord) {
    let mut by_check: BTreeMap<&str, Vec<Finding>> =
        DEFECT_CHECKS.iter().map(|check| (*check, Vec::new())).collect();
    let finding = |defect: &Defect| {
        Finding::new(GateName::Ptq, &defect.check, defect.failure_class, &defect.tensor)
            .observed(&defect.observed)
            .expected(&defect.expected)
    };
    for defect in &scan.defects {
        by_check.entry(&defect.check).or_default().push(finding(defect));
    }
    out.add_list(scan.notes.iter().map(|note| finding(note).as_note()).collect());
    for (check, findings) in by_check {
        let count = findings.len();
        out.add_list(findings);
        // Size, coverage and metadata have their own entry.
        if DEFECT_CHECKS.contains(&check) {
            out.check(check, json!({"defects": count}));
        }
    }
}

fn metadata(out: &mut Collector, scan: &ScanRecord) {
    let blocking = scan.metadata_diffs.iter().filter(|diff| diff.kind == DiffKind::Blocking);
    let findings = blocking.map(|diff| {
        Finding::new(
            GateName::Ptq,
            "metadata",
            FailureClass::QuantCoverageFailure,
            format!("{} {}", diff.file, diff.field),
        )
        .observed(&diff.output)
        .expected(&diff.source)
    });
    out.add_list(findings.collect());
    out.check("metadata", json!({"diffs": scan.metadata_diffs}));
}

fn not_checked(out: &mut Collector, scan: &ScanRecord) {
    let findings = scan.not_checked.iter().map(|(check, reason)| {
        Finding::new(GateName::Ptq, "not_checked", FailureClass::InsufficientEvidence, check)
            .observed(reason)
            .hint("scan the whole checkpoint, with its source, where its bytes are at hand")
    });
    out.add_list(findings.collect());
    out.check("not_checked", json!({"checks": scan.not_checked}));
}

fn ratio(bytes: u64, of: u64) -> f64 {
    bytes as f64 / of as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::fixtures::scan;
    use crate::record::Verdict;
    use crate::record::scan::MetadataDiff;

    fn class(change: impl FnOnce(&mut ScanRecord)) -> Option<FailureClass> {
        let mut record = scan();
        change(&mut record);
        let report = ptq(&record);
        assert_eq!(report.pass, report.failure_class.is_none());
        report.failure_class
    }

    #[test]
    fn a_promised_checkpoint_passes_with_every_check_named() {
        let report = ptq(&scan());
        assert_eq!(report.verdict, Some(Verdict::Accept), "{}", report.detail);
        for check in ["size", "coverage", "metadata", "not_checked", "scales", "fused_sets", "values"] {
            assert_eq!(report.checks[check]["pass"], json!(true), "{check}");
        }
    }

    #[test]
    fn size_must_be_below_bf16_and_below_an_unquantized_source() {
        let coverage = Some(FailureClass::QuantCoverageFailure);
        assert_eq!(
            class(|r| (r.size.output_bytes, r.size.source_bf16_bytes) = (100_500, Some(100_500))),
            coverage
        );
        assert_eq!(class(|r| r.size.source_bf16_bytes = Some(r.size.output_bytes + 1)), None);
        assert_eq!(class(|r| r.size.source_bytes = Some(r.size.output_bytes)), coverage);
        let quantized_source = |r: &mut ScanRecord| {
            r.size.source_bytes = Some(r.size.output_bytes);
            r.size.source_is_quantized = true;
        };
        assert_eq!(class(quantized_source), None);
        assert_eq!(class(|r| r.size.output_bytes = 0), coverage);
    }

    #[test]
    fn size_must_be_within_one_percent_of_the_prediction() {
        assert_eq!(class(|r| r.size.output_bytes = 101_000), None);
        assert_eq!(class(|r| r.size.output_bytes = 101_001), Some(FailureClass::QuantCoverageFailure));
        assert_eq!(class(|r| r.size.output_bytes = 98_999), Some(FailureClass::QuantCoverageFailure));
        assert_eq!(class(|r| r.size.predicted_bytes = None), None);
        let unpredictable = |r: &mut ScanRecord| r.size.predicted_bytes = r.size.source_bf16_bytes;
        assert_eq!(class(unpredictable), Some(FailureClass::ModelUnsupported));
    }

    #[test]
    fn without_a_source_there_is_not_enough_evidence() {
        let class = class(|r| {
            r.size.source_bytes = None;
            r.size.source_bf16_bytes = None;
        });
        assert_eq!(class, Some(FailureClass::InsufficientEvidence));
    }

    #[test]
    fn nothing_matched_is_unsupported() {
        let matched_nothing = |r: &mut ScanRecord| {
            r.coverage.quantized = 0;
            r.coverage.recipe_targets = Some(0);
            r.quant_method = None;
        };
        assert_eq!(class(matched_nothing), Some(FailureClass::ModelUnsupported));
        let declared_nothing_found = |r: &mut ScanRecord| {
            r.coverage.quantized = 0;
            r.coverage.recipe_targets = None;
        };
        assert_eq!(class(declared_nothing_found), Some(FailureClass::ModelUnsupported));
    }

    #[test]
    fn coverage_failures() {
        let coverage = Some(FailureClass::QuantCoverageFailure);
        assert_eq!(class(|r| r.quant_method = None), coverage);
        let declares_nothing = |r: &mut ScanRecord| {
            r.quant_method = None;
            r.coverage.quantized = 0;
        };
        assert_eq!(class(declares_nothing), coverage);
        assert_eq!(class(|r| r.coverage.unexpected_unquantized.push("a".into())), coverage);
        assert_eq!(class(|r| r.coverage.declaration_mismatch.push("a".into())), coverage);
        assert_eq!(class(|r| r.coverage.recipe_targets = Some(15)), coverage);
        assert_eq!(class(|r| r.coverage.recipe_targets = None), None);
        let all_left = |r: &mut ScanRecord| {
            r.coverage.quantized = 0;
            r.coverage.unexpected_unquantized = vec!["a".into()];
        };
        assert_eq!(class(all_left), coverage);
    }

    #[test]
    fn defects_keep_class_and_tensor() {
        let mut record = scan();
        record.defects.push(Defect {
            check: "scales".into(),
            failure_class: FailureClass::QuantCoverageFailure,
            tensor: "model.layers.0.mlp.up_proj.weight_scale".into(),
            observed: "0".into(),
            expected: "> 0".into(),
        });
        let report = ptq(&record);
        assert_eq!(report.failure_class, Some(FailureClass::QuantCoverageFailure));
        assert!(report.detail.contains("up_proj.weight_scale"), "{}", report.detail);
        assert_eq!(report.checks["scales"], json!({"defects": 1, "pass": false}));
        record.defects[0].failure_class = FailureClass::ModelUnsupported;
        assert_eq!(ptq(&record).verdict, Some(Verdict::Infeasible));
    }

    #[test]
    fn a_metadata_difference_fails_unless_quantizing_explains_it() {
        let diff = |kind| MetadataDiff {
            file: "tokenizer.json".into(),
            field: "content".into(),
            source: "a".into(),
            output: "b".into(),
            kind,
        };
        let blocking = class(|r| r.metadata_diffs.push(diff(DiffKind::Blocking)));
        assert_eq!(blocking, Some(FailureClass::QuantCoverageFailure));
        assert_eq!(class(|r| r.metadata_diffs.push(diff(DiffKind::Expected))), None);
    }

    #[test]
    fn notes_decide_nothing() {
        let mut record = scan();
        record.notes.push(Defect {
            check: "exclusions".into(),
            failure_class: FailureClass::QuantCoverageFailure,
            tensor: "lm_head".into(),
            observed: "stored".into(),
            expected: "nothing".into(),
        });
        let report = ptq(&record);
        assert_eq!(report.verdict, Some(Verdict::Accept), "{}", report.detail);
        assert!(report.findings.iter().any(|f| f.subject == "lm_head" && !f.decides()));
    }

    #[test]
    fn what_was_not_checked_is_never_accepted() {
        let class = class(|r| {
            r.not_checked.insert("scales".into(), "headers only".into());
        });
        assert_eq!(class, Some(FailureClass::InsufficientEvidence));
    }
}
