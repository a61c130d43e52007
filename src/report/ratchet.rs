//! What a ratchet allows and what was measured, as a table.

use std::fmt::Write as _;

use serde::Deserialize;

use super::cell;
use crate::record::GateReport;
use crate::record::ratchet::Threshold;
use crate::record::snapshot::Measured;

/// The table of the thresholds; nothing where the report holds none.
pub fn ratchet(decided: &GateReport) -> String {
    let mut rows = String::new();
    for (metric, seen) in &decided.checks {
        let Some(limit) = seen.get("limit").and_then(|limit| Threshold::deserialize(limit).ok()) else {
            continue;
        };
        let limit = match (limit.min, limit.max) {
            (Some(min), _) => format!("≥ {min}"),
            (None, max) => format!("≤ {}", max.unwrap_or(f64::NAN)),
        };
        let measured = Measured::deserialize(&seen["measured"]).ok();
        let shown = measured.map_or_else(|| "–".to_owned(), |m| m.to_string());
        let result = match seen["pass"].as_bool() {
            Some(true) => "kept",
            Some(false) => "**not kept**",
            None => "not evaluated",
        };
        let _ = writeln!(rows, "| {} | {limit} | {shown} | {result} |", cell(metric));
    }
    if rows.is_empty() {
        return rows;
    }
    format!("| threshold | limit | measured | result |\n|---|---|---|---|\n{rows}\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::gate;
    use crate::record::snapshot::{Snapshot, TestCounts};

    /// Document 004, "Quality Ratchet": limits beside what was measured, also of what nobody measured.
    #[test]
    fn limits_stand_beside_what_was_measured() {
        let tests = |total| Some(TestCounts { total, passed: total, failed: 0, skipped: 0 });
        let release = |ratio| {
            let noisy = Measured { value: 0.99, lower: Some(0.98), upper: Some(1.0) };
            BTreeMap::from([
                ("sizeRatio".to_owned(), Measured::exact(ratio)),
                ("recovery.a".to_owned(), noisy),
            ])
        };
        let before = Snapshot { tests: tests(10), release: release(0.5), ..Snapshot::default() };
        let file = gate::ratchet::init(&before, "x", &[]).unwrap();
        let now = Snapshot { release: release(0.75), ..Snapshot::default() };
        let text = ratchet(&gate::ratchet::check(&file, &now, true));
        for line in [
            "| threshold | limit | measured | result |",
            "| sizeRatio | ≤ 0.5 | 0.75 | **not kept** |",
            "| recovery.a | ≥ 0.98 | 0.99 (0.9800 … 1.0000) | kept |",
            "| testCount | ≥ 10 | – | not evaluated |",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
