//! The comparability proof: both arms answered the same requests under the same conditions, and are two models.
//!
//! Same tasks and item sets (else SAMPLE_ACCOUNTING_FAILED); same task versions and digests, prompts and tokens item
//! by item, metric, weights, engine, device, kernel path and tokenizer; another checkpoint digest on each arm; and
//! log-likelihoods that are not bit-identical, which would mean that the candidate is not what is served (else
//! COMPARABILITY_FAILED). Each check names its first difference.

use super::super::findings::Collector;
use crate::record::eval::{EvalRecord, ItemRecord, TaskRecord};
use crate::record::score::EngineIdentity;
use crate::record::{FailureClass, Finding, GateName};

/// Adds the first difference of each kind.
pub(super) fn collect(out: &mut Collector, baseline: &EvalRecord, candidate: &EvalRecord) {
    identity(out, &baseline.identity, &candidate.identity);
    for (name, task) in &baseline.tasks {
        match candidate.tasks.get(name) {
            None => out.add(missing(name, "candidate")),
            Some(other) => tasks(out, name, task, other),
        }
    }
    for name in candidate.tasks.keys().filter(|name| !baseline.tasks.contains_key(*name)) {
        out.add(missing(name, "baseline"));
    }
}

/// Turns the differences between engines into notes: the runs are compared although other programs made them.
pub(super) fn excuse_engines(findings: &mut [Finding]) {
    let excused =
        ["engine", "device", "kernel_path", "tokenizer"].map(|check| format!("comparability.{check}"));
    for finding in findings.iter_mut().filter(|f| excused.contains(&f.check)) {
        *finding = finding.clone().as_note();
    }
}

fn missing(task: &str, arm: &str) -> Finding {
    Finding::new(GateName::Compare, "comparability.tasks", FailureClass::SampleAccountingFailed, task)
        .observed(format!("not evaluated on the {arm}"))
        .expected("the same tasks on both arms")
}

fn differs(check: &str, subject: &str, baseline: &str, candidate: &str) -> Finding {
    let check = format!("comparability.{check}");
    Finding::new(GateName::Compare, &check, FailureClass::ComparabilityFailed, subject)
        .observed(format!("{candidate} on the candidate"))
        .expected(format!("{baseline} as on the baseline"))
}

fn identity(out: &mut Collector, baseline: &EngineIdentity, candidate: &EngineIdentity) {
    for (check, a, b) in [
        ("engine", &baseline.engine, &candidate.engine),
        ("device", &baseline.device, &candidate.device),
        ("kernel_path", &baseline.kernel_path, &candidate.kernel_path),
    ] {
        if a != b {
            out.add(differs(check, "engine", a, b));
        }
    }
    let short = |digest: &Option<crate::base::digest::Digest>| {
        digest.as_ref().map_or("unknown".to_owned(), |digest| digest.short(16).to_owned())
    };
    let (a, b) = (&baseline.tokenizer_digest, &candidate.tokenizer_digest);
    match (a, b) {
        (Some(a), Some(b)) if a == b => {}
        // Token digests of every item are compared below; the tokenizer's own digest adds the text side.
        (None, None) => out.add(differs("tokenizer", "tokenizer", "unknown", "unknown").as_note()),
        _ => out.add(differs("tokenizer", "tokenizer", &short(a), &short(b))),
    }
    let checkpoint = |observed: &str| {
        Finding::new(
            GateName::Compare,
            "comparability.checkpoint",
            FailureClass::ComparabilityFailed,
            "checkpoint digest",
        )
        .observed(observed)
        .expected("a known digest on each arm, not the same")
    };
    match (&baseline.checkpoint_digest, &candidate.checkpoint_digest) {
        (Some(a), Some(b)) if a == b => {
            out.add(checkpoint(&format!("{} on both arms", a.short(16))));
        }
        (Some(_), Some(_)) if baseline.identity_proven && candidate.identity_proven => {}
        (Some(_), Some(_)) => out.add(checkpoint("identity declared, not proven").as_note()),
        _ => out.add(checkpoint("unknown").hint("name the checkpoint an endpoint serves with --model DIR")),
    }
}

fn tasks(out: &mut Collector, name: &str, baseline: &TaskRecord, candidate: &TaskRecord) {
    if baseline.version != candidate.version {
        out.add(differs("version", name, &baseline.version, &candidate.version));
    }
    if baseline.task_digest != candidate.task_digest {
        let (a, b) = (baseline.task_digest.short(16), candidate.task_digest.short(16));
        out.add(differs("task_digest", name, a, b));
    }
    if baseline.primary_metric != candidate.primary_metric {
        let show = |task: &TaskRecord| {
            let metric = &task.primary_metric;
            let direction = if metric.higher_is_better { "higher" } else { "lower" };
            format!("{} ({direction} is better, scale {:?})", metric.name, metric.scale)
        };
        out.add(differs("metric", name, &show(baseline), &show(candidate)));
    }
    if let Some(finding) = item_sets(name, baseline, candidate) {
        out.add(finding);
        return;
    }
    let pairs = || baseline.items.iter().zip(&candidate.items);
    if let Some(finding) = pairs().find_map(|(a, b)| items(name, a, b)) {
        out.add(finding);
    }
    let identical = pairs().filter(|(a, b)| same_bits(a, b)).count();
    if identical > 0 && identical == baseline.items.len() {
        out.add(
            Finding::new(
                GateName::Compare,
                "comparability.identical",
                FailureClass::ComparabilityFailed,
                name,
            )
            .observed(format!("all log-likelihoods of {identical} items are bit-identical on both arms"))
            .expected("a quantized model answers a little differently")
            .hint("the candidate is not what is served, or its scores came from the baseline's cache"),
        );
    } else if 2 * identical > baseline.items.len() {
        out.add(
            Finding::new(
                GateName::Compare,
                "comparability.identical",
                FailureClass::ComparabilityFailed,
                name,
            )
            .observed(format!("{identical} of {} items are bit-identical on both arms", baseline.items.len()))
            .as_note(),
        );
    }
}

/// Item sets that differ, by the first item that only one arm has.
fn item_sets(name: &str, baseline: &TaskRecord, candidate: &TaskRecord) -> Option<Finding> {
    let ids = |task: &TaskRecord| -> Vec<usize> { task.items.iter().map(|item| item.doc_id).collect() };
    let (a, b) = (ids(baseline), ids(candidate));
    let facts = |task: &TaskRecord| (task.expected, task.full_split);
    if a == b && facts(baseline) == facts(candidate) {
        return None;
    }
    let first = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or_else(|| a.len().min(b.len()));
    let show = |ids: &[usize], task: &TaskRecord| {
        let item = ids.get(first).map_or_else(String::new, |id| format!(", item {id} at place {first}"));
        format!("{} of {} items (split {}){item}", ids.len(), task.expected, task.full_split)
    };
    let mut finding = differs("items", name, &show(&a, baseline), &show(&b, candidate));
    finding.failure_class = FailureClass::SampleAccountingFailed;
    Some(finding)
}

/// What differs first between one item's requests on the two arms.
fn items(task: &str, a: &ItemRecord, b: &ItemRecord) -> Option<Finding> {
    let subject = format!("{task} item {}", a.doc_id);
    let show = |digest: &crate::base::digest::Digest| digest.short(16).to_owned();
    let (check, a, b) = match () {
        () if a.prompt_digest != b.prompt_digest => {
            ("prompts", show(&a.prompt_digest), show(&b.prompt_digest))
        }
        () if a.token_digest != b.token_digest => ("tokens", show(&a.token_digest), show(&b.token_digest)),
        // A failed item has no answers to compare; the accounting names it.
        () if a.error.is_some() || b.error.is_some() => return None,
        () if a.loglikelihoods.len() != b.loglikelihoods.len() => {
            let requests = |item: &ItemRecord| format!("{} requests", item.loglikelihoods.len());
            ("requests", requests(a), requests(b))
        }
        () if a.weight != b.weight => ("weights", a.weight.to_string(), b.weight.to_string()),
        () if a.cluster != b.cluster => ("clusters", format!("{:?}", a.cluster), format!("{:?}", b.cluster)),
        () => return None,
    };
    Some(differs(check, &subject, &a, &b))
}

fn same_bits(a: &ItemRecord, b: &ItemRecord) -> bool {
    let bits = |item: &ItemRecord| -> Vec<u64> { item.loglikelihoods.iter().map(|l| l.to_bits()).collect() };
    !a.loglikelihoods.is_empty() && bits(a) == bits(b)
}
