//! Output of the real tools, and damaged output.

use proptest::prelude::*;

use super::{Format, ParseError, Parsed};
use crate::record::snapshot::TestCounts;

const FORMATS: [Format; 9] = [
    Format::Junit,
    Format::Libtest,
    Format::Nextest,
    Format::Jest,
    Format::Vitest,
    Format::Pytest,
    Format::Tsc,
    Format::Eslint,
    Format::Clippy,
];

#[track_caller]
fn counts(format: Format, text: &str) -> (u64, u64, u64, u64) {
    let parsed = format.parse(text.as_bytes(), b"").unwrap();
    let Parsed::Tests(TestCounts { total, passed, failed, skipped }) = parsed else { panic!("{parsed:?}") };
    (total, passed, failed, skipped)
}

#[track_caller]
fn problems(format: Format, text: &str) -> (u64, u64) {
    let parsed = format.parse(text.as_bytes(), b"").unwrap();
    let Parsed::Problems { errors, warnings } = parsed else { panic!("{parsed:?}") };
    (errors, warnings)
}

/// Written by pytest 8 (`--junit-xml`) and nextest, shortened.
#[test]
fn junit_cases_are_counted() {
    let pytest = r#"<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"><testsuite name="pytest"
        errors="1" failures="1" skipped="1" tests="4" time="0.03"><testcase classname="t" name="a" time="0.0"/>
        <testcase classname="t" name="b"><failure message="assert 1 == 2">def b(): &lt;x&gt;</failure></testcase>
        <testcase classname="t" name="c"><error message="failed on setup">E</error></testcase>
        <testcase classname="t" name="d"><skipped type="pytest.skip" message="no">no</skipped></testcase>
        </testsuite></testsuites>"#;
    assert_eq!(counts(Format::Junit, pytest), (4, 1, 2, 1));
    let flaky = r#"<testsuites><testsuite name="x" tests="1"><testcase name="a"><flakyFailure/></testcase>
        <testsuite name="inner"><testcase name="b"><failure/></testcase></testsuite></testsuite></testsuites>"#;
    assert_eq!(counts(Format::Junit, flaky), (2, 1, 1, 0));
    // A suite that could not be collected.
    let broken = r#"<testsuite name="x" tests="0" errors="2"/>"#;
    assert_eq!(counts(Format::Junit, broken), (2, 0, 2, 0));
}

#[test]
fn malformed_junit_names_the_place_and_expands_nothing() {
    let error = Format::Junit.parse(b"<testsuites>\n<testcase></testsuites>", b"").unwrap_err().to_string();
    assert!(error.contains("JUnit XML") && error.contains("2:"), "{error}");
    let bomb = r#"<!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;">]><testsuites>&z;</testsuites>"#;
    assert!(matches!(Format::Junit.parse(bomb.as_bytes(), b""), Err(ParseError::Malformed { .. })));
    assert!(Format::Junit.parse(b"<html/>", b"").unwrap_err().to_string().contains("<html>"));
}

/// Document 004, "What It Captures": total, passed, failed, skipped; as cargo prints them.
#[test]
fn libtest_binaries_are_summed_and_crashes_count_as_failures() {
    let text = "running 3 tests\ntest a ... ok\ntest b ... FAILED\ntest c ... ignored\n\n\
        test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s\n\
        \u{1b}[32m     Running\u{1b}[0m x\nrunning 2 tests\n\
        test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
    assert_eq!(counts(Format::Libtest, text), (5, 3, 1, 1));
    let crashed = "running 4 tests\ntest a ... ok\nerror: test failed (signal: 11, SIGSEGV)\n";
    assert_eq!(counts(Format::Libtest, crashed), (4, 0, 4, 0));
    let coloured = "running 1 test\ntest result: \u{1b}[32mok\u{1b}[0m. 1 passed; 0 failed; 0 ignored; 0 measured; \
        0 filtered out; finished in 0.00s\n";
    assert_eq!(counts(Format::Libtest, coloured), (1, 1, 0, 0));
    assert!(Format::Libtest.parse(b"error: could not compile", b"").is_err());
}

/// Lines as nextest 0.9 prints them (nextest-runner, reporter/displayer).
#[test]
fn nextest_summary() {
    let text =
        "    Summary [   0.012s] 5 tests run: 3 passed (1 slow, 1 flaky), 1 failed, 1 timed out, 2 skipped\n";
    assert_eq!(counts(Format::Nextest, text), (7, 3, 2, 2));
    let cancelled = "     Summary [   0.1s] 2/10 tests run: 1 passed, 1 failed, 0 skipped\n";
    assert_eq!(counts(Format::Nextest, cancelled), (10, 1, 9, 0));
}

/// Document 004, "What It Captures": test counts from Vitest's and Jest's JSON.
#[test]
fn jest_and_vitest_behind_a_banner() {
    let text = "> app@1.0.0 test\n> vitest run --reporter=json\n\n{\"numTotalTestSuites\":2,\"numTotalTests\":5,\
        \"numPassedTests\":3,\"numFailedTests\":1,\"numPendingTests\":1,\"numTodoTests\":0,\"testResults\":[\
        {\"status\":\"failed\",\"assertionResults\":[]},{\"status\":\"failed\",\"assertionResults\":[{}]}]}\n";
    assert_eq!(counts(Format::Vitest, text), (6, 3, 2, 1));
    let cut = &text[..text.len() - 20];
    assert!(matches!(Format::Jest.parse(cut.as_bytes(), b""), Err(ParseError::Malformed { .. })));
    let wrong = "{\"numTotalTests\":\"5\"}";
    assert!(Format::Jest.parse(wrong.as_bytes(), b"").unwrap_err().to_string().contains("numTotalTests"));
}

#[test]
fn pytest_summary() {
    let text = "=== short test summary info ===\nFAILED t.py::b - assert 1 == 2\n\
        ======= 3 failed, 10 passed, 2 skipped, 1 xfailed, 1 xpassed, 2 warnings, 1 error in 0.12s =======\n";
    assert_eq!(counts(Format::Pytest, text), (18, 11, 4, 3));
    assert_eq!(counts(Format::Pytest, "1 failed, 2 passed in 61.01s (0:01:01)\n"), (3, 2, 1, 0));
    assert_eq!(counts(Format::Pytest, "==== no tests ran in 0.00s ====\n"), (0, 0, 0, 0));
    assert!(Format::Pytest.parse(b"Segmentation fault", b"").is_err());
}

/// Document 004, "What It Captures": count `error TS\d+` lines in stderr.
#[test]
fn tsc_errors() {
    let text = "src/a.ts(1,7): error TS2322: Type 'string' is not assignable.\n\
        src/b.ts:2:1 - error TS2304: Cannot find name 'x'.\nFound 2 errors.\n";
    assert_eq!(problems(Format::Tsc, text), (2, 0));
    assert_eq!(problems(Format::Tsc, ""), (0, 0));
    assert_eq!(Format::Tsc.parse(b"", b"error TS1: x"), Ok(Parsed::Problems { errors: 1, warnings: 0 }));
}

/// Document 004, "What It Captures": ESLint's summary line or its error lines.
#[test]
fn eslint_summary_json_and_lines() {
    assert_eq!(problems(Format::Eslint, "\n✖ 12 problems (3 errors, 9 warnings)\n"), (3, 9));
    assert_eq!(problems(Format::Eslint, "\n✖ 1 problem (1 error, 0 warnings)\n"), (1, 0));
    let json = r#"[{"filePath":"a","errorCount":2,"warningCount":1},{"errorCount":0,"warningCount":3}]"#;
    assert_eq!(problems(Format::Eslint, json), (2, 4));
    let lines = "/a.js\n  1:10  error  'x' is unused  no-unused-vars\n  2:1  warning  y  z\n";
    assert_eq!(problems(Format::Eslint, lines), (1, 1));
    assert_eq!(problems(Format::Eslint, ""), (0, 0));
    assert!(Format::Eslint.parse(b"[{\"errorCount\":1}]", b"").is_err());
}

#[test]
fn clippy_messages_count_once_and_summaries_do_not() {
    let message = |level: &str, text: &str, spans: &str| {
        format!(
            "{{\"reason\":\"compiler-message\",\"message\":{{\"level\":\"{level}\",\"rendered\":\"{text}\",\
             \"spans\":[{spans}]}}}}\n"
        )
    };
    let text = [
        message("warning", "unused", "{}"),
        message("warning", "unused", "{}"),
        message("error", "mismatched", "{}"),
        message("error", "aborting due to 1 previous error", ""),
        "{\"reason\":\"build-finished\",\"success\":false}\n".to_owned(),
    ]
    .concat();
    assert_eq!(problems(Format::Clippy, &text), (1, 1));
    assert!(matches!(Format::Clippy.parse(b"warning: x", b""), Err(ParseError::Nothing { .. })));
    let cut = Format::Clippy.parse(b"{\"reason\":\"compiler-message\"}\n{\"reas", b"").unwrap_err();
    assert!(cut.to_string().contains("line 2"), "{cut}");
}

proptest! {
    /// Parsers of outside bytes end with counts or an error, whatever they read.
    #[test]
    fn no_bytes_break_a_parser(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for format in FORMATS {
            let _ = format.parse(&bytes, &bytes);
        }
    }

    #[test]
    fn no_text_of_the_formats_breaks_a_parser(
        parts in proptest::collection::vec(prop_oneof![
            Just("test result: ok. 99999999999999999999 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out"),
            Just("Summary [ 1s] 5/1 tests run: 3 passed, 1 failed"),
            Just("{\"numTotalTests\":1"), Just("<testsuite errors='-1'>"), Just("</testsuite>"), Just("\u{1b}["),
            Just("1 passed, 2 failed in 1s"), Just("[{"), Just("✖ 1 problem (1 error, 99999999999999999999 warnings)"),
            Just("\n"), Just("running 18446744073709551615 tests"), Just("{\"reason\":1}"),
        ], 0..12)
    ) {
        let text = parts.concat();
        for format in FORMATS {
            let _ = format.parse(text.as_bytes(), b"");
        }
    }
}
