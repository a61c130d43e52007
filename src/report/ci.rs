//! What a CI system shows of a release: a Markdown summary of one screen, and JUnit XML.

use std::fmt::Write as _;

use super::{cell, scores};
use crate::base::units::human_seconds;
use crate::record::release::ReleaseRecord;
use crate::record::{Failure, GateName, GateReport, Verdict};

/// The job summary: verdict, stages, scores.
pub fn summary(record: &ReleaseRecord) -> String {
    let verdict = record.verdict.map_or_else(|| "no verdict".to_owned(), |v| v.to_string());
    let mut text = format!("## day0: {verdict}\n\n`{}` with recipe `{}`\n\n", record.model, record.recipe);
    let _ = writeln!(text, "**{}**\n", record.recommendation);
    if let Some(class) = record.failure_class {
        let _ = writeln!(text, "`{class}`: {}\n\nNext: {}.\n", cell(&record.detail), class.next_action());
    }
    text.push_str("| stage | verdict | time |\n|---|---|---|\n");
    for stage in &record.stages {
        let verdict = match (&stage.verdict, stage.skipped.is_empty()) {
            (Some(v), _) => v.to_string(),
            (None, true) => "done".to_owned(),
            (None, false) => "not run".to_owned(),
        };
        let _ = writeln!(text, "| {} | {verdict} | {} |", stage.stage, human_seconds(stage.elapsed_s));
    }
    if let Some(compare) = record.gates.iter().find(|g| g.gate == GateName::Compare) {
        let _ = write!(text, "\n{}", scores::table(compare));
    }
    text.push('\n');
    text
}

/// A release without a record: it ended with an error before it was closed, or its jobs are yet to run.
pub struct Unclosed {
    /// What it came to, in words.
    title: &'static str,
    /// Failure class; empty where nothing failed.
    class: String,
    message: String,
    hint: String,
}

impl Unclosed {
    /// One that ended with `failure`.
    pub fn failed(failure: &Failure) -> Self {
        Self {
            title: "no verdict",
            class: failure.class.to_string(),
            message: failure.message.clone(),
            hint: failure.hint.clone().unwrap_or_default(),
        }
    }

    /// One that was submitted as `jobs`.
    pub fn submitted(jobs: &[String]) -> Self {
        let hint = "wait for its end with `day0 release --resume RUN --wait --ci`".to_owned();
        Self { title: "submitted, no verdict yet", class: String::new(), message: jobs.join(", "), hint }
    }

    /// The job summary.
    pub fn summary(&self) -> String {
        let mut text = format!("## day0: {}\n\n", self.title);
        let class = if self.class.is_empty() { String::new() } else { format!("`{}`: ", self.class) };
        let _ = writeln!(text, "{class}{}\n", cell(&self.message));
        if !self.hint.is_empty() {
            let _ = writeln!(text, "Next: {}.\n", cell(&self.hint));
        }
        text
    }

    /// JUnit XML of one test case, the release.
    pub fn junit(&self) -> String {
        let end = if self.class.is_empty() {
            End::Skipped(self.title)
        } else {
            End::Broken { class: self.class.clone(), message: &self.message }
        };
        render("day0 release", 0.0, &[("release".to_owned(), "release".to_owned(), 0.0, end)])
    }
}

/// How one test case ended.
enum End<'a> {
    Passed,
    Failed {
        class: String,
        message: &'a str,
    },
    /// Nothing was decided.
    Broken {
        class: String,
        message: &'a str,
    },
    Skipped(&'a str),
}

/// JUnit XML: each stage a test case, each task of the comparison one, and the release itself.
/// Format: <https://github.com/testmoapp/junitxml>.
pub fn junit(record: &ReleaseRecord) -> String {
    let mut cases: Vec<(String, String, f64, End<'_>)> = Vec::new();
    for stage in &record.stages {
        let end = match (&stage.verdict, stage.skipped.as_str()) {
            (Some(Verdict::Accept), _) | (None, "") => End::Passed,
            (Some(verdict), _) => {
                let about =
                    |g: &&GateReport| g.verdict == Some(*verdict) && stage.stage.ends_with(&g.subject);
                let gate = record.gates.iter().find(about);
                let class = gate.and_then(|g| g.failure_class).map_or_else(String::new, |c| c.to_string());
                End::Failed { class, message: gate.map_or("", |g| g.detail.as_str()) }
            }
            (None, why) => End::Skipped(why),
        };
        cases.push(("stage".to_owned(), stage.stage.clone(), stage.elapsed_s, end));
    }
    if let Some(compare) = record.gates.iter().find(|g| g.gate == GateName::Compare) {
        for task in compare.per_task.keys() {
            let found = compare.findings.iter().find(|f| f.decides() && f.subject == *task);
            let end = match found {
                Some(finding) => {
                    End::Failed { class: finding.failure_class.to_string(), message: &finding.observed }
                }
                None => End::Passed,
            };
            cases.push(("task".to_owned(), task.clone(), 0.0, end));
        }
    }
    let class = record.failure_class.map_or_else(String::new, |c| c.to_string());
    let end = match record.verdict {
        Some(Verdict::Accept) => End::Passed,
        Some(_) => End::Failed { class, message: &record.detail },
        None => End::Broken { class, message: &record.detail },
    };
    cases.push(("release".to_owned(), record.model.clone(), record.provenance.timing.elapsed_s, end));
    let name = format!("day0 release {} {}", record.model, record.recipe);
    render(&name, record.provenance.timing.elapsed_s, &cases)
}

/// A test suite: class, name, seconds and end of each case.
fn render(name: &str, elapsed_s: f64, cases: &[(String, String, f64, End<'_>)]) -> String {
    let count = |which: fn(&End<'_>) -> bool| cases.iter().filter(|(.., end)| which(end)).count();
    let name = escape(name);
    let totals = format!(
        "tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" time=\"{:.3}\"",
        cases.len(),
        count(|e| matches!(e, End::Failed { .. })),
        count(|e| matches!(e, End::Broken { .. })),
        count(|e| matches!(e, End::Skipped(_))),
        elapsed_s
    );
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(text, "<testsuites name=\"day0\" {totals}>\n  <testsuite name=\"{name}\" {totals}>");
    for (kind, name, seconds, end) in cases {
        let head = format!(
            "    <testcase classname=\"day0.{kind}\" name=\"{}\" time=\"{seconds:.3}\"",
            escape(name)
        );
        let inner = match end {
            End::Passed => {
                let _ = writeln!(text, "{head}/>");
                continue;
            }
            End::Failed { class, message } => {
                format!("<failure type=\"{}\" message=\"{}\"/>", escape(class), escape(message))
            }
            End::Broken { class, message } => {
                format!("<error type=\"{}\" message=\"{}\"/>", escape(class), escape(message))
            }
            End::Skipped(why) => format!("<skipped message=\"{}\"/>", escape(why)),
        };
        let _ = writeln!(text, "{head}>\n      {inner}\n    </testcase>");
    }
    text.push_str("  </testsuite>\n</testsuites>\n");
    text
}

/// Text as an XML attribute. Characters that XML 1.0 does not know are left out.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' | '\r' => out.push(' '),
            c if c < ' ' || c == '\u{fffe}' || c == '\u{ffff}' => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_without_a_record_is_a_broken_case() {
        let failure = Failure::config("day0.yaml: <bad>").with_hint("correct it");
        let failed = Unclosed::failed(&failure);
        assert!(
            failed.junit().contains("<error type=\"USER_CONFIG_ERROR\" message=\"day0.yaml: &lt;bad&gt;\"/>")
        );
        assert!(failed.junit().contains("tests=\"1\" failures=\"0\" errors=\"1\""));
        assert!(
            failed.summary().contains("`USER_CONFIG_ERROR`")
                && failed.summary().contains("Next: correct it.")
        );
        let submitted = Unclosed::submitted(&["scan 7".to_owned()]);
        assert!(submitted.junit().contains("<skipped message=\"submitted, no verdict yet\"/>"));
        assert!(submitted.summary().contains("scan 7"));
    }

    #[test]
    fn texts_become_attributes() {
        assert_eq!(escape("a<b & \"c\"\u{1}\nd>"), "a&lt;b &amp; &quot;c&quot; d&gt;");
    }
}
