//! The quality score as founding document 003 reports it.

use std::fmt::Write as _;

use serde::Deserialize;

use crate::record::GateReport;
use crate::record::quality::QualityScore;

/// The summary table and the gate's status; nothing where the report holds no score.
pub fn quality(decided: &GateReport) -> String {
    let Some(score) = decided.checks.get("score").and_then(|seen| QualityScore::deserialize(seen).ok())
    else {
        return String::new();
    };
    let mut text = String::from("| Dimension | Score | Weight | Weighted |\n|---|---|---|---|\n");
    let weighted = |value: u32, weight: f64| f64::from(value) * weight;
    for (name, shown, weight, value) in [
        ("Severity Distribution", format!("{}/100", score.severity), "40%", weighted(score.severity, 0.4)),
        ("Fix Effectiveness", format!("{}/100", score.fix), "30%", weighted(score.fix, 0.3)),
        ("Coverage Completeness", format!("{}/20", score.coverage), "20%", f64::from(score.coverage)),
        ("Iteration Efficiency", format!("{}/10", score.efficiency), "10%", f64::from(score.efficiency)),
    ] {
        let _ = writeln!(text, "| {name} | {shown} | {weight} | {value:.1} |");
    }
    let _ = writeln!(text, "| **Total** | | | **{}/100** |\n", score.total);
    let _ = writeln!(
        text,
        "Quality Gate: {}\n\nCriteria:\n- Quality Score: {} (threshold: 80)\n- Critical Issues: {} (threshold: 0)\n\
         - High Issues: {} (threshold: 2)",
        score.gate, score.total, score.critical, score.high
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate;
    use crate::record::quality::{Diagnosis, QualityState};

    /// Document 003, "Reporting Format"; DESIGN section 7: gate thresholds (80, 0, 2) over report thresholds.
    #[test]
    fn the_table_and_the_status_are_those_of_the_document() {
        let state = QualityState {
            issues: vec![crate::record::Severity::High],
            diagnosis: Diagnosis { ptq: true, run: true, compare: true, repro: false },
            iteration_count: 1,
            ..QualityState::default()
        };
        let text = quality(&gate::quality::decide(&state, None));
        for line in [
            "| Dimension | Score | Weight | Weighted |",
            "| Severity Distribution | 85/100 | 40% | 34.0 |",
            "| Fix Effectiveness | 100/100 | 30% | 30.0 |",
            "| Coverage Completeness | 15/20 | 20% | 15.0 |",
            "| Iteration Efficiency | 10/10 | 10% | 10.0 |",
            "| **Total** | | | **89/100** |",
            "Quality Gate: PASS",
            "- Quality Score: 89 (threshold: 80)",
            "- Critical Issues: 0 (threshold: 0)",
            "- High Issues: 1 (threshold: 2)",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
