//! Records that pass their gate, for tests to damage.

use std::collections::BTreeMap;

use crate::base::digest::Digest;
use crate::base::threads::Threads;
use crate::record::eval::{
    EvalRecord, ItemError, ItemOrder, ItemRecord, Metric, MetricInfo, TaskRecord, TaskStatus,
};
use crate::record::scan::{CoverageScan, ScanRecord, SizeScan};
use crate::record::score::EngineIdentity;
use crate::record::serve::{Canary, ProbeResult, SelfTest, ServeRecord};
use crate::record::{Provenance, SCHEMA_VERSION};

fn provenance() -> Provenance {
    Provenance::new(Threads { count: 1, origin: "test".into() })
}

/// 14 modules quantized, 100 kB of 200 kB, as predicted.
pub(super) fn scan() -> ScanRecord {
    ScanRecord {
        schema_version: SCHEMA_VERSION,
        checkpoint: "candidate".into(),
        checkpoint_digest: Some(Digest::of(b"candidate")),
        source: Some("source".into()),
        source_digest: Some(Digest::of(b"source")),
        size: SizeScan {
            output_bytes: 100_000,
            source_bytes: Some(200_000),
            source_bf16_bytes: Some(200_000),
            source_is_quantized: false,
            predicted_bytes: Some(100_000),
            parameters: 100_000,
            bits_per_weight: 8.0,
        },
        quant_method: Some("compressed-tensors".into()),
        coverage: CoverageScan {
            modules_by_precision: BTreeMap::from([("fp8_e4m3".into(), 14), ("bf16".into(), 1)]),
            quantized: 14,
            excluded: vec!["lm_head".into()],
            unexpected_unquantized: Vec::new(),
            declaration_mismatch: Vec::new(),
            recipe_targets: Some(14),
        },
        metadata_diffs: Vec::new(),
        defects: Vec::new(),
        not_checked: BTreeMap::new(),
        dtype_counts: BTreeMap::from([("F8_E4M3".into(), 14)]),
        notes: Vec::new(),
        engines: Vec::new(),
        scale_ranges: BTreeMap::new(),
        errors: Vec::new(),
        values: None,
        transfer: None,
        provenance: provenance(),
    }
}

fn identity(arm: &str) -> EngineIdentity {
    EngineIdentity {
        engine: "day0 test".into(),
        device: "cpu".into(),
        kernel_path: "cpu-f32".into(),
        checkpoint_digest: Some(Digest::of(arm.as_bytes())),
        identity_proven: true,
        tokenizer_digest: Some(Digest::of(b"tokenizer")),
    }
}

/// A healthy candidate after the run.
pub(super) fn served() -> ServeRecord {
    let ok = ProbeResult { ok: true, status: Some(200), detail: "ok".into() };
    ServeRecord {
        fingerprint: None,
        schema_version: SCHEMA_VERSION,
        arm: "candidate".into(),
        url: "http://127.0.0.1:8000".into(),
        launched: true,
        attempts: 1,
        health: ok.clone(),
        expected_digest: Some(Digest::of(b"candidate")),
        identity: Some(identity("candidate")),
        canary: Some(Canary { text: "the cat".into(), tokens: 16, finite: true, repeatable: true }),
        self_test: Some(SelfTest {
            entry_count_ok: true,
            first_is_null: true,
            rest_finite: true,
            greedy_consistent: true,
            refused_status: None,
            detail: String::new(),
        }),
        stayed_up: Some(ok),
        speed: None,
        contradiction: None,
        process: None,
        log_excerpt: "last line".into(),
        command: "day0 serve candidate".into(),
        provenance: provenance(),
    }
}

fn item(doc_id: usize, metric: &str, value: f64, loglikelihoods: Vec<f64>) -> ItemRecord {
    ItemRecord {
        doc_id,
        prompt_digest: Digest::of(format!("prompt {doc_id}").as_bytes()),
        token_digest: Digest::of(format!("tokens {doc_id}").as_bytes()),
        is_greedy: vec![false; loglikelihoods.len()],
        loglikelihoods,
        values: BTreeMap::from([(metric.to_owned(), value)]),
        weight: 1.0,
        gold: None,
        target_digest: Some(Digest::of(format!("target {doc_id}").as_bytes())),
        cluster: None,
        error: None,
    }
}

/// An item that failed.
pub(super) fn failed_item(doc_id: usize, status: Option<u16>, transient: bool) -> ItemRecord {
    let mut failed = item(doc_id, "acc", 0.0, Vec::new());
    failed.values.clear();
    failed.error = Some(ItemError { status, transient, message: "failed".into() });
    failed
}

/// A finished task over `items`, its metric computed from them.
pub(super) fn task(name: &str, metric: MetricInfo, items: Vec<ItemRecord>) -> TaskRecord {
    let weights: f64 = items.iter().map(|i| i.weight).sum();
    let value = items.iter().map(|i| i.weight * i.values[&metric.name]).sum::<f64>() / weights;
    let higher_is_better = metric.higher_is_better;
    TaskRecord {
        task: name.into(),
        version: "1.0".into(),
        task_digest: Digest::of(name.as_bytes()),
        status: TaskStatus::Success,
        expected: items.len(),
        full_split: items.len(),
        limited_by: String::new(),
        order: Some(ItemOrder::Dataset),
        truncated: 0,
        items,
        metrics: BTreeMap::from([(metric.name.clone(), Metric { value, stderr: None, higher_is_better })]),
        primary_metric: metric,
        visit: None,
    }
}

/// One arm over `tasks`. Arms of different names have different checkpoints.
pub(super) fn arm(name: &str, tasks: Vec<TaskRecord>) -> EvalRecord {
    EvalRecord {
        schema_version: SCHEMA_VERSION,
        arm: name.into(),
        identity: identity(name),
        tasks: tasks.into_iter().map(|task| (task.task.clone(), task)).collect(),
        groups: BTreeMap::new(),
        confirmations: Vec::new(),
        provenance: provenance(),
    }
}

/// A four-choice task; log-likelihoods differ a little from arm to arm, named by `salt`.
pub(super) fn accuracy_task(name: &str, values: &[f64], salt: &str) -> TaskRecord {
    let metric = MetricInfo { name: "acc".into(), higher_is_better: true, scale: Some(1.0) };
    let shift = salt.len() as f64 * 1e-3;
    let choices = |doc: usize| (0..4).map(|c| -1.0 - shift - ((doc + 3 * c) % 7) as f64).collect();
    let items = values.iter().enumerate().map(|(doc, value)| item(doc, "acc", *value, choices(doc)));
    task(name, metric, items.collect())
}

/// One arm of one four-choice task named `task`.
pub(super) fn accuracy_arm(name: &str, values: &[f64]) -> EvalRecord {
    arm(name, vec![accuracy_task("task", values, name)])
}

/// One arm of one rolling task named `text`: bits per byte of documents of 100, 101, … bytes.
pub(super) fn perplexity_arm(name: &str, bits: &[f64]) -> EvalRecord {
    let metric = MetricInfo { name: "bits_per_byte".into(), higher_is_better: false, scale: None };
    let items = bits.iter().enumerate().map(|(doc, bits)| {
        let weight = 100.0 + doc as f64;
        let mut item = item(doc, "bits_per_byte", *bits, vec![-bits * weight * std::f64::consts::LN_2]);
        item.weight = weight;
        item
    });
    arm(name, vec![task("text", metric, items.collect())])
}
