//! JUnit XML (<https://github.com/testmoapp/junitxml>): test cases are counted one by one, so that wrong totals in the
//! attributes do not hide a failure.

use roxmltree::{Document, Node};

use super::{ParseError, number};
use crate::record::snapshot::TestCounts;

/// Counts a report. Entities beyond XML's own and external ones are refused by the parser.
pub(super) fn junit(text: &str) -> Result<TestCounts, ParseError> {
    let malformed = |detail: String| ParseError::Malformed { format: "JUnit XML", detail };
    let document =
        Document::parse(text.trim_start_matches('\u{feff}')).map_err(|e| malformed(e.to_string()))?;
    let root = document.root_element();
    if !matches!(root.tag_name().name(), "testsuites" | "testsuite") {
        let found = root.tag_name().name();
        return Err(malformed(format!("the root is <{found}>, expected <testsuites> or <testsuite>")));
    }
    let mut counts = TestCounts::default();
    for case in root.descendants().filter(|n| n.has_tag_name("testcase")) {
        let has = |name: &str| case.children().any(|c| c.has_tag_name(name));
        counts.total += 1;
        if has("failure") || has("error") {
            counts.failed += 1;
        } else if has("skipped") || case.attribute("status") == Some("notrun") {
            counts.skipped += 1;
        } else {
            counts.passed += 1;
        }
    }
    // A suite that broke before its first case says so only in its attributes.
    let declared = declared_failures(root);
    if declared > counts.failed {
        counts.total += declared - counts.failed;
        counts.failed = declared;
    }
    Ok(counts)
}

/// Failures and errors by the attributes of the innermost suites.
fn declared_failures(root: Node<'_, '_>) -> u64 {
    let is_suite = |n: &Node<'_, '_>| n.has_tag_name("testsuite");
    let suites = root.descendants().filter(is_suite);
    let innermost = suites.filter(|n| !n.children().any(|c| is_suite(&c)));
    let count = |n: Node<'_, '_>, name| n.attribute(name).map_or(0, number);
    innermost.map(|n| count(n, "failures") + count(n, "errors")).sum()
}
