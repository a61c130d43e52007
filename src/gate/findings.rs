//! What all gates share: collecting checks and findings, and keeping long lists readable.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::record::{FailureClass, Finding, GateName, GateReport, SCHEMA_VERSION};

/// Findings of one check that are named one by one; the rest is counted. A broken export can have a defect in every
/// tensor, and nobody reads the hundredth.
pub(super) const LISTED_FINDINGS: usize = 20;

/// The checks and findings of a gate while it runs.
pub(super) struct Collector {
    pub gate: GateName,
    checks: BTreeMap<String, Value>,
    pub per_task: BTreeMap<String, Value>,
    pub findings: Vec<Finding>,
}

impl Collector {
    pub fn new(gate: GateName) -> Self {
        Self { gate, checks: BTreeMap::new(), per_task: BTreeMap::new(), findings: Vec::new() }
    }

    /// A finding of this gate, to be completed and added.
    pub fn finding(&self, check: &str, class: FailureClass, subject: impl Into<String>) -> Finding {
        Finding::new(self.gate, check, class, subject)
    }

    pub fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Adds the first [`LISTED_FINDINGS`] and one that counts the rest.
    pub fn add_list(&mut self, mut list: Vec<Finding>) {
        let hidden = list.len().saturating_sub(LISTED_FINDINGS);
        list.truncate(LISTED_FINDINGS);
        if let Some(last) = list.last().filter(|_| hidden > 0) {
            let mut rest = last.clone();
            rest.subject = format!("{hidden} more");
            rest.observed.clear();
            list.push(rest);
        }
        self.findings.extend(list);
    }

    /// Records what the check `name` saw, with `pass` = no deciding finding of it or of a check below it (`name.…`).
    pub fn check(&mut self, name: &str, mut seen: Value) {
        let below = |check: &str| {
            check.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let pass = !self.findings.iter().any(|f| f.decides() && below(&f.check));
        seen["pass"] = json!(pass);
        self.checks.insert(name.to_owned(), seen);
    }

    /// Replaces `pass` of the check `name`: `null` is what was not evaluated, which is never shown as a pass.
    pub fn mark(&mut self, name: &str, pass: Value) {
        if let Some(seen) = self.checks.get_mut(name) {
            seen["pass"] = pass;
        }
    }

    /// A record of another schema cannot be judged.
    pub fn require_schema(&mut self, found: u32) {
        if found != SCHEMA_VERSION {
            let finding = self.finding("schema", FailureClass::UserConfigError, "schema_version");
            self.add(finding.observed(found.to_string()).expected(SCHEMA_VERSION.to_string()));
        }
    }

    /// Folds everything; `accepted` is the detail of a report without a deciding finding.
    pub fn report(self, accepted: impl Into<String>) -> GateReport {
        let mut report = GateReport::new(self.gate, self.checks, self.per_task, self.findings);
        if report.pass {
            report.detail = accepted.into();
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_counted() {
        let mut out = Collector::new(GateName::Ptq);
        let list: Vec<Finding> = (0..25)
            .map(|i| out.finding("scales", FailureClass::QuantCoverageFailure, format!("tensor {i}")))
            .collect();
        out.add_list(list);
        assert_eq!(out.findings.len(), LISTED_FINDINGS + 1);
        assert_eq!(out.findings[LISTED_FINDINGS].subject, "5 more");
        out.check("scales", json!({}));
        let report = out.report("fine");
        assert_eq!(report.checks["scales"]["pass"], json!(false));
        assert_ne!(report.detail, "fine");
    }

    #[test]
    fn another_schema_is_a_configuration_error() {
        let mut out = Collector::new(GateName::Run);
        out.require_schema(SCHEMA_VERSION + 1);
        assert_eq!(out.report("").failure_class, Some(FailureClass::UserConfigError));
    }
}
