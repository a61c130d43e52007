//! Gate `serve`: is the arm served, is it this checkpoint, and can its log-probs be trusted?
//!
//! - health: answered 200, after at most one restart. A refusal (401, 403, 429) is EVAL_JUDGE_FAILED, anything else
//!   DEPLOYMENT_HEALTH_FAILED; then nothing further is judged.
//! - identity: the digest that is served is the one that must be. A digest that is declared, not proven, is a note.
//! - canary: greedy tokens came, with finite log-probs (else the deployment is not healthy), twice the same (else
//!   scores of two arms are not comparable). It never judges quality.
//! - self_test: echoed log-probs are complete and consistent, else EVAL_JUDGE_FAILED.
//! - stayed_up: healthy with the same identity after the last request. The gate is asked before scoring, when this is
//!   not known yet (a note), and again after it, when it is a note of an engine that ended with the process that scored,
//!   before its last look, and was confirmed after every wave. An engine that answers but failed this has another identity.

use serde_json::json;

use super::findings::Collector;
use crate::record::serve::{ProbeResult, ServeRecord};
use crate::record::{FailureClass, Finding, GateName, GateReport};

/// Decides on one arm's engine.
pub fn serve(record: &ServeRecord) -> GateReport {
    let mut out = Collector::new(GateName::Serve);
    out.require_schema(record.schema_version);
    health(&mut out, record);
    if record.health.ok {
        identity(&mut out, record);
        canary(&mut out, record);
        self_test(&mut out, record);
        stayed_up(&mut out, record);
    }
    let accepted = format!("{} is healthy, canary and log-prob self-test passed", place(record));
    out.report(accepted).about(&record.arm)
}

/// Whether an HTTP status means that the endpoint refuses to answer this client.
pub(super) fn is_refusal(status: Option<u16>) -> bool {
    matches!(status, Some(401 | 403 | 429))
}

/// What a finding is about: the endpoint's address, or the engine that day0 started, whose port says nothing.
fn place(record: &ServeRecord) -> &str {
    match (record.launched, &record.process) {
        (true, None) => "the built-in engine",
        (true, Some(_)) => "the launched engine",
        (false, _) => &record.url,
    }
}

fn unhealthy(check: &str, record: &ServeRecord, probe: &ProbeResult) -> Finding {
    let class = match probe.status {
        status if is_refusal(status) => FailureClass::EvalJudgeFailed,
        _ => FailureClass::DeploymentHealthFailed,
    };
    let status = probe.status.map_or_else(|| "no answer".to_owned(), |status| format!("status {status}"));
    let mut finding = Finding::new(GateName::Serve, check, class, place(record))
        .observed(format!("{status} after {} attempts: {}", record.attempts, probe.detail))
        .expected("status 200");
    if !record.command.is_empty() {
        finding.hint = format!("reproduce with `{}`; its log ends: {}", record.command, record.log_excerpt);
    }
    finding
}

fn health(out: &mut Collector, record: &ServeRecord) {
    if !record.health.ok {
        out.add(unhealthy("health", record, &record.health));
    } else if record.attempts > 1 {
        out.add(
            out.finding("health", FailureClass::DeploymentHealthFailed, place(record))
                .observed(format!("came up at attempt {}", record.attempts))
                .as_note(),
        );
    }
    out.check(
        "health",
        json!({"probe": record.health, "attempts": record.attempts, "launched": record.launched}),
    );
}

fn identity(out: &mut Collector, record: &ServeRecord) {
    let failure =
        |subject: &str| Finding::new(GateName::Serve, "identity", FailureClass::ComparabilityFailed, subject);
    let expected = record.expected_digest.as_ref();
    if let Some(contradiction) = &record.contradiction {
        out.add(failure("engine").observed(contradiction));
    }
    match &record.identity {
        None => out.add(failure("engine").observed("does not say what it serves")),
        Some(identity) => match (&identity.checkpoint_digest, expected) {
            (Some(digest), Some(expected)) if digest != expected => {
                out.add(failure("checkpoint digest").observed(digest.short(16)).expected(expected.short(16)));
            }
            (Some(_), _) if identity.identity_proven => {}
            _ => out.add(failure("checkpoint digest").observed("identity declared, not proven").as_note()),
        },
    }
    out.check("identity", json!({"identity": record.identity, "expected_digest": expected}));
}

fn canary(out: &mut Collector, record: &ServeRecord) {
    let failure = |class| Finding::new(GateName::Serve, "canary", class, place(record));
    match &record.canary {
        None => out.add(failure(FailureClass::InsufficientEvidence).observed("no canary was run")),
        Some(canary) => {
            if canary.tokens == 0 {
                let finding = failure(FailureClass::DeploymentHealthFailed);
                out.add(finding.observed("generated nothing").expected("greedy tokens"));
            }
            if !canary.finite {
                let finding = failure(FailureClass::DeploymentHealthFailed);
                out.add(finding.observed("log-probs that are not finite"));
            }
            if !canary.repeatable {
                let finding = failure(FailureClass::ComparabilityFailed);
                out.add(finding.observed("two greedy generations differ").expected("twice the same"));
            }
        }
    }
    out.check("canary", json!({"canary": record.canary}));
}

fn self_test(out: &mut Collector, record: &ServeRecord) {
    let failure = Finding::new(GateName::Serve, "self_test", FailureClass::EvalJudgeFailed, place(record));
    match &record.self_test {
        None => out.add(failure.observed("no log-prob self-test was run")),
        Some(test) if test.refused_status.is_some() || !test.pass() => {
            let status = test.refused_status.map_or_else(String::new, |status| format!("status {status}: "));
            out.add(
                failure
                    .observed(format!("{status}{}", test.detail))
                    .expected("an echoed log-prob for each prompt token after the first, all finite"),
            );
        }
        Some(_) => {}
    }
    out.check("self_test", json!({"self_test": record.self_test}));
}

fn stayed_up(out: &mut Collector, record: &ServeRecord) {
    match &record.stayed_up {
        None => out.add(
            out.finding("stayed_up", FailureClass::InsufficientEvidence, place(record))
                .observed("no look after the last request")
                .as_note(),
        ),
        Some(probe) if probe.ok => {}
        Some(probe) if probe.status == Some(200) => out.add(
            out.finding("stayed_up", FailureClass::ComparabilityFailed, place(record))
                .observed(&probe.detail)
                .expected("the identity it had at the start"),
        ),
        Some(probe) => out.add(unhealthy("stayed_up", record, probe)),
    }
    if record.process.as_ref().is_some_and(|process| process.restarts > 0) {
        out.add(
            out.finding("stayed_up", FailureClass::DeploymentHealthFailed, place(record))
                .observed("ended by itself and was started again")
                .as_note(),
        );
    }
    out.check("stayed_up", json!({"probe": record.stayed_up}));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::digest::Digest;
    use crate::gate::fixtures::served;
    use crate::record::serve::{Canary, SelfTest};

    fn class(change: impl FnOnce(&mut ServeRecord)) -> Option<FailureClass> {
        let mut record = served();
        change(&mut record);
        serve(&record).failure_class
    }

    fn down(status: Option<u16>) -> ProbeResult {
        ProbeResult { ok: false, status, detail: "refused".into() }
    }

    #[test]
    fn a_healthy_engine_passes_before_and_after_scoring() {
        assert!(serve(&served()).pass);
        assert_eq!(class(|r| r.stayed_up = None), None);
        assert_eq!(class(|r| r.attempts = 2), None);
    }

    #[test]
    fn health_failures_by_status() {
        let health = Some(FailureClass::DeploymentHealthFailed);
        assert_eq!(class(|r| r.health = down(None)), health);
        assert_eq!(class(|r| r.health = down(Some(503))), health);
        for status in [401, 403, 429] {
            assert_eq!(class(|r| r.health = down(Some(status))), Some(FailureClass::EvalJudgeFailed));
        }
        let mut record = served();
        record.health = down(None);
        record.identity = None;
        record.canary = None;
        let report = serve(&record);
        assert_eq!(report.findings.len(), 1, "consequences are not findings: {}", report.detail);
        assert!(report.findings[0].hint.contains(&record.command));
    }

    #[test]
    fn identity_must_be_the_expected_one() {
        let comparability = Some(FailureClass::ComparabilityFailed);
        assert_eq!(class(|r| r.identity = None), comparability);
        assert_eq!(class(|r| r.expected_digest = Some(Digest::of(b"another"))), comparability);
        assert_eq!(class(|r| r.contradiction = Some("it serves /other".to_owned())), comparability);
        assert_eq!(class(|r| r.identity.as_mut().unwrap().identity_proven = false), None);
        assert_eq!(class(|r| r.identity.as_mut().unwrap().checkpoint_digest = None), None);
    }

    #[test]
    fn the_canary_is_mechanical() {
        let with = |change: fn(&mut Canary)| class(|r| change(r.canary.as_mut().unwrap()));
        assert_eq!(with(|c| c.tokens = 0), Some(FailureClass::DeploymentHealthFailed));
        assert_eq!(with(|c| c.finite = false), Some(FailureClass::DeploymentHealthFailed));
        assert_eq!(with(|c| c.repeatable = false), Some(FailureClass::ComparabilityFailed));
        assert_eq!(with(|c| c.text = "gibberish".into()), None);
        assert_eq!(class(|r| r.canary = None), Some(FailureClass::InsufficientEvidence));
    }

    #[test]
    fn a_lost_self_test_is_a_judge_failure() {
        let judge = Some(FailureClass::EvalJudgeFailed);
        let with = |change: fn(&mut SelfTest)| class(|r| change(r.self_test.as_mut().unwrap()));
        assert_eq!(with(|t| t.entry_count_ok = false), judge);
        assert_eq!(with(|t| t.first_is_null = false), judge);
        assert_eq!(with(|t| t.rest_finite = false), judge);
        assert_eq!(with(|t| t.greedy_consistent = false), judge);
        assert_eq!(with(|t| t.refused_status = Some(401)), judge);
        assert_eq!(class(|r| r.self_test = None), judge);
    }

    #[test]
    fn going_down_or_changing_identity_during_the_run() {
        assert_eq!(class(|r| r.stayed_up = Some(down(None))), Some(FailureClass::DeploymentHealthFailed));
        assert_eq!(class(|r| r.stayed_up = Some(down(Some(429)))), Some(FailureClass::EvalJudgeFailed));
        assert_eq!(class(|r| r.stayed_up = Some(down(Some(200)))), Some(FailureClass::ComparabilityFailed));
    }
}
