//! `report.md`: the verdict and everything it rests on, for the person who must decide today.

use std::fmt::Write as _;

use super::cell;
use super::scores::{self, Texts};
use crate::base::units::{human_bytes, human_seconds};
use crate::record::release::ReleaseRecord;
use crate::record::serve::ServeSpeed;
use crate::record::{GateName, GateReport};

/// Flipped items shown per task.
pub const SHOWN_FLIPS: usize = 10;

/// Renders a release; `texts` are those of the flipped items.
pub fn release(record: &ReleaseRecord, texts: &Texts) -> String {
    let mut text = String::new();
    verdict(&mut text, record);
    stages(&mut text, record);
    readiness(&mut text, record);
    for gate in &record.gates {
        gate_section(&mut text, gate);
    }
    if let Some(compare) = record.gates.iter().find(|g| g.gate == GateName::Compare) {
        scores_and_flips(&mut text, compare, texts);
    }
    speed(&mut text, record);
    lists(&mut text, record);
    execution(&mut text, record);
    provenance(&mut text, record);
    text
}

// Writing to a String cannot fail.
macro_rules! line {
    ($text:expr) => { let _ = writeln!($text); };
    ($text:expr, $($arg:tt)*) => { let _ = writeln!($text, $($arg)*); };
}

fn verdict(text: &mut String, record: &ReleaseRecord) {
    let verdict = record.verdict.map_or_else(|| "no verdict".to_owned(), |v| v.to_string());
    line!(text, "# {verdict}: {} with recipe {}", record.model, record.recipe);
    line!(text);
    line!(text, "**{}**", record.recommendation);
    if let Some(class) = record.failure_class {
        line!(text);
        line!(text, "`{class}`: {}", cell(&record.detail));
        line!(text);
        line!(text, "Next: {}.", class.next_action());
    }
    line!(text);
}

fn stages(text: &mut String, record: &ReleaseRecord) {
    line!(text, "## Stages\n\n| stage | verdict | time |\n|---|---|---|");
    for stage in &record.stages {
        let verdict = match (&stage.verdict, stage.skipped.is_empty()) {
            (Some(v), _) => v.to_string(),
            (None, true) => "done".to_owned(),
            (None, false) => format!("not run: {}", stage.skipped),
        };
        line!(text, "| {} | {verdict} | {} |", stage.stage, human_seconds(stage.elapsed_s));
    }
    line!(text);
    if record.baseline_reused {
        line!(text, "The baseline arm was reused from an earlier run with the same key.\n");
    }
}

fn readiness(text: &mut String, record: &ReleaseRecord) {
    if record.readiness.is_empty() {
        return;
    }
    line!(text, "## Readiness\n\n| gate | level | result | detail |\n|---|---|---|---|");
    for gate in &record.readiness {
        line!(text, "| {} | {} | {} | {} |", gate.gate, gate.level, gate.result, cell(&gate.detail));
    }
    line!(text);
    if let Some(repro) = record.gates.iter().find(|g| g.gate == GateName::Repro) {
        text.push_str(&super::criteria(repro));
    }
    if let Some(diff) = record.gates.iter().find(|g| g.gate == GateName::Diff) {
        text.push_str(&super::comparisons(diff));
    }
    if let Some(ratchet) = record.gates.iter().find(|g| g.gate == GateName::Ratchet) {
        text.push_str(&super::ratchet(ratchet));
    }
    let is_curve = |f: &&String| f.starts_with("ready/curve_");
    for curve in record.artifacts.keys().filter(is_curve) {
        line!(text, "![{curve}]({curve})\n");
    }
    if let Some(quality) = record.gates.iter().find(|g| g.gate == GateName::Quality) {
        line!(text, "{}", super::quality(quality));
    }
}

fn gate_section(text: &mut String, gate: &GateReport) {
    let subject = if gate.subject.is_empty() { String::new() } else { format!(" ({})", gate.subject) };
    let verdict = gate.verdict.map_or_else(|| "no verdict".to_owned(), |v| v.to_string());
    line!(text, "## Gate {}{subject}: {verdict}\n\n| check | result |\n|---|---|", gate.gate);
    for (name, check) in &gate.checks {
        let result = match check.get("pass").and_then(serde_json::Value::as_bool) {
            Some(true) => "pass",
            Some(false) => "**fail**",
            None => "noted",
        };
        line!(text, "| {name} | {result} |");
    }
    line!(text);
    for finding in &gate.findings {
        let kind = if finding.decides() { finding.failure_class.to_string() } else { "note".to_owned() };
        line!(text, "- {kind}: {}", cell(&finding.to_string()));
        if finding.decides() {
            line!(text, "  - next: {}", cell(&finding.hint));
        }
    }
    line!(text);
}

fn scores_and_flips(text: &mut String, compare: &GateReport, texts: &Texts) {
    line!(text, "## Scores\n");
    line!(
        text,
        "Drops are positive where the candidate is worse. Bounds are one-sided; fractions of the scale, or of the"
    );
    line!(
        text,
        "baseline for metrics without one. A task that stopped early has bounds that hold at every look.\n"
    );
    line!(text, "{}", scores::table(compare));
    text.push_str(&scores::explain(compare, texts, SHOWN_FLIPS));
}

fn speed(text: &mut String, record: &ReleaseRecord) {
    let (Some(baseline), Some(candidate)) = (record.speed.get("baseline"), record.speed.get("candidate"))
    else {
        return;
    };
    line!(text, "## Speed\n");
    line!(text, "One short load over HTTP each: it shows a factor, not a few percent.\n");
    line!(text, "| what | baseline | candidate | candidate / baseline |\n|---|---|---|---|");
    let numbers =
        |s: &ServeSpeed| [s.scored_tokens_per_s, s.generated_tokens_per_s, s.ttft_ms_p50, s.tpot_ms_p50];
    let names = [
        "prompt tokens scored a second",
        "tokens generated a second, 2 clients",
        "time to the first token, median, ms",
        "time for each further token, median, ms",
    ];
    for (what, (a, b)) in names.iter().zip(numbers(baseline).into_iter().zip(numbers(candidate))) {
        line!(text, "| {what} | {a:.1} | {b:.1} | {:.2} |", b / a);
    }
    line!(text);
}

fn lists(text: &mut String, record: &ReleaseRecord) {
    line!(text, "## Not tested\n");
    for item in &record.not_tested {
        line!(text, "- {item}");
    }
    line!(text);
}

/// Where each unit ran and what was tried again. Waves of one task in one process are one line.
fn execution(text: &mut String, record: &ReleaseRecord) {
    let execution = &record.execution;
    if execution.places.is_empty() && execution.tried_again().is_empty() {
        return;
    }
    line!(text, "## Where it ran\n\n| units | number | place | job | time |\n|---|---|---|---|---|");
    for place in &execution.places {
        let job = if place.job.is_empty() { "–" } else { &place.job };
        let time = human_seconds(place.elapsed_s);
        line!(text, "| {} | {} | {} | {job} | {time} |", cell(&place.units), place.count, cell(&place.place));
    }
    line!(text);
    let tried_again = execution.tried_again();
    if tried_again.is_empty() {
        line!(text, "Nothing was tried again.\n");
        return;
    }
    line!(text, "Tried again:\n");
    for what in &tried_again {
        line!(text, "- {}", cell(what));
    }
    line!(text);
}

fn provenance(text: &mut String, record: &ReleaseRecord) {
    let p = &record.provenance;
    line!(text, "## Provenance\n\n| what | value |\n|---|---|");
    line!(text, "| run | {} |", record.run_id);
    line!(text, "| day0 | {} ({}) |", p.tool_version, p.git_hash);
    line!(text, "| kernel path | {} on {}, {} threads |", p.kernel_path, p.device, p.threads.count);
    for (name, digest) in &p.inputs {
        line!(text, "| {name} | `{}` |", digest.short(16));
    }
    for (name, seed) in &p.seeds {
        line!(text, "| seed of the {name} | {seed} |");
    }
    if let Some(bytes) = p.timing.peak_memory_bytes {
        line!(text, "| peak memory | {} |", human_bytes(bytes));
    }
}
