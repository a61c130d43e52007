//! The comparability proof: both arms answered the same requests under the same conditions, and are two models.
//!
//! Same tasks and item sets (else SAMPLE_ACCOUNTING_FAILED); same task versions and digests, prompts, tokens and right
//! answers item by item, metric, weights, engine, device, kernel path and tokenizer; another checkpoint digest on each
//! arm; and scores that differ as those of two models do, which the baseline served twice does not give (`identical`;
//! else COMPARABILITY_FAILED). Prompts or right answers that a run does not tell are not proven: INSUFFICIENT_EVIDENCE.
//! Each check names its first difference.

use super::super::findings::Collector;
use super::identical;
use super::options::CompareOptions;
use crate::record::eval::{EvalRecord, ItemRecord, TaskRecord, unknown_digest};
use crate::record::score::{EngineIdentity, UNKNOWN};
use crate::record::{FailureClass, Finding, GateName};

/// Adds the first difference of each kind.
pub(super) fn collect(
    out: &mut Collector,
    baseline: &EvalRecord,
    candidate: &EvalRecord,
    options: &CompareOptions,
) {
    identity(out, &baseline.identity, &candidate.identity);
    out.findings.extend(identical::fixed_prompts(baseline, candidate));
    for (name, task) in &baseline.tasks {
        match candidate.tasks.get(name) {
            None => out.add(missing(name, "candidate")),
            Some(other) => tasks(out, name, task, other, options),
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
            let hint = "score both arms with one engine; `day0 compare --across-engines` makes this a note";
            let finding = differs(check, "engine", a, b).hint(hint);
            // An endpoint that does not say what it computes on contradicts nothing.
            let is_unsaid = check == "device" && [a, b].iter().any(|said| *said == UNKNOWN);
            out.add(if is_unsaid { finding.as_note() } else { finding });
        }
    }
    let short = |digest: &Option<crate::base::digest::Digest>| {
        digest.as_ref().map_or(UNKNOWN.to_owned(), |digest| digest.short(16).to_owned())
    };
    let (a, b) = (&baseline.tokenizer_digest, &candidate.tokenizer_digest);
    match (a, b) {
        (Some(a), Some(b)) if a == b => {}
        // Token digests of every item are compared below; the tokenizer's own digest adds the text side.
        (None, None) => out.add(differs("tokenizer", "tokenizer", UNKNOWN, UNKNOWN).as_note()),
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
        _ => out.add(checkpoint(UNKNOWN).hint("name the checkpoint an endpoint serves with --model DIR")),
    }
}

fn tasks(
    out: &mut Collector,
    name: &str,
    baseline: &TaskRecord,
    candidate: &TaskRecord,
    options: &CompareOptions,
) {
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
    let mut pairs = baseline.items.iter().zip(&candidate.items);
    if let Some(finding) = pairs.clone().find_map(|(a, b)| items(name, a, b)) {
        out.add(finding);
    }
    if let Some(finding) = pairs.find_map(|(a, b)| unproven(name, a, b)) {
        out.add(if options.trust_prompts { finding.as_note() } else { finding });
    }
    out.findings.extend(identical::task(name, baseline, candidate, options.noise.get(name)));
}

/// What the two runs do not tell of an item, and what therefore may differ unseen.
fn unproven(task: &str, a: &ItemRecord, b: &ItemRecord) -> Option<Finding> {
    let unknown = unknown_digest();
    let untold = |digest: &ItemRecord| digest.target_digest.is_none();
    let what = match () {
        () if a.prompt_digest == unknown && b.prompt_digest == unknown => "prompts",
        () if untold(a) != untold(b) && (a.gold.is_none() || b.gold.is_none()) => "right answers",
        () => return None,
    };
    let class = FailureClass::InsufficientEvidence;
    let finding = Finding::new(GateName::Compare, "comparability.unknown", class, task)
        .observed(format!("{what} unknown: not proven to be the same"))
        .expected("runs that tell the prompt and the right answer of every item")
        .hint("compare runs that log them; `day0 compare --trust-prompts` takes your word for it");
    Some(finding)
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

/// Whether both arms tell it, and not the same.
fn told_apart<T: PartialEq>(a: Option<&T>, b: Option<&T>) -> bool {
    a.is_some() && b.is_some() && a != b
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
        () if told_apart(a.target_digest.as_ref(), b.target_digest.as_ref()) => {
            let target = |item: &ItemRecord| item.target_digest.as_ref().map(show).unwrap_or_default();
            ("targets", target(a), target(b))
        }
        () if told_apart(a.gold.as_ref(), b.gold.as_ref()) => {
            ("targets", format!("{:?}", a.gold), format!("{:?}", b.gold))
        }
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
