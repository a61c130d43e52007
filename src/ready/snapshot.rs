//! Takes a [`Snapshot`]: runs the configured commands and counts what they print.

use std::collections::BTreeMap;
use std::io::{BufWriter, Read, Seek, Write};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::config::{CountedCommand, Kind};
use super::parse::Parsed;
use super::process::{self, Bounded, End, RunError, Spec};
use crate::base::{atomic, clock, json, progress};
use crate::record::snapshot::{LintCounts, Snapshot, TypecheckCounts};
use crate::record::{Failure, SCHEMA_VERSION};

/// Where the captured baseline lies unless told otherwise (document 004: `.agent/quality-baseline.json`).
pub const BASELINE_FILE: &str = ".day0/quality-baseline.json";

/// Bytes of a stream that are kept for counting: the beginning, and the end after a flood.
const HEAD_BYTES: u64 = 64 << 20;
const TAIL_BYTES: usize = 4 << 20;
/// Numbers the captures of this process, which may run at the same time.
static CAPTURES: AtomicUsize = AtomicUsize::new(0);

/// Larger report files are refused.
const MAX_REPORT_BYTES: u64 = 256 << 20;

/// Runs every command in `dir` and counts. A command that leaves nothing to count is noted in the snapshot.
///
/// # Errors
/// Only an interruption, or files of our own that cannot be written.
pub fn take(commands: &BTreeMap<Kind, CountedCommand>, dir: &Path) -> Result<Snapshot, Failure> {
    let mut snapshot = Snapshot {
        schema_version: SCHEMA_VERSION,
        timestamp: clock::now_iso8601(),
        commit_sha: commit(dir),
        ..Snapshot::default()
    };
    for (kind, command) in commands {
        match count(*kind, command, dir)? {
            Ok(counted) => counted.put_into(&mut snapshot),
            Err(reason) => {
                progress::note(&format!("{}: {reason}", kind.as_str()));
                snapshot.failed_commands.insert(kind.as_str().to_owned(), reason);
            }
        }
    }
    Ok(snapshot)
}

/// Reads a stored snapshot.
pub fn read(path: &Path) -> Result<Snapshot, Failure> {
    let snapshot: Snapshot = json::read(path)?;
    if snapshot.schema_version != SCHEMA_VERSION {
        let found = snapshot.schema_version;
        return Err(Failure::config(format!(
            "{}: schema_version is {found}, expected {SCHEMA_VERSION}",
            path.display()
        ))
        .with_hint("capture the baseline again with this version"));
    }
    Ok(snapshot)
}

/// Stores a captured baseline. One that is there already is what later changes are measured against, and is replaced
/// only when asked for.
pub fn store(path: &Path, snapshot: &Snapshot, force: bool) -> Result<(), Failure> {
    if path.exists() && !force {
        return Err(Failure::config(format!("{}: holds a baseline already", path.display()))
            .with_hint("--force replaces it; changes since then are no longer seen"));
    }
    Ok(json::write(path, snapshot)?)
}

/// A counted command.
struct Counted {
    kind: Kind,
    parsed: Parsed,
    exit_code: i32,
}

impl Counted {
    fn put_into(&self, snapshot: &mut Snapshot) {
        match (self.kind, self.parsed) {
            (_, Parsed::Tests(counts)) => snapshot.tests = Some(counts),
            (Kind::Lint, Parsed::Problems { errors, warnings }) => {
                snapshot.lint = Some(LintCounts { error_count: errors, warning_count: warnings });
            }
            (_, Parsed::Problems { errors, .. }) => {
                snapshot.typecheck = Some(TypecheckCounts { error_count: errors, exit_code: self.exit_code });
            }
        }
    }
}

/// Counts one command; the inner error says why there is nothing to count.
fn count(kind: Kind, command: &CountedCommand, dir: &Path) -> Result<Result<Counted, String>, Failure> {
    let mut output = Output { stdout: Vec::new(), stderr: Vec::new(), cut: false };
    let mut exit_code = 0;
    let mut described = String::from("no command");
    let report = command.report.as_ref().map(|report| dir.join(report));
    if let Some(run) = &command.run {
        // What an earlier run reported is no evidence of this one.
        if let Some(path) = &report
            && let Err(e) = atomic::remove(path)
        {
            return Ok(Err(format!("{}: cannot be removed before `{run}`: {e}", path.display())));
        }
        progress::note(&format!("{}: {run}", kind.as_str()));
        described = format!("`{run}`");
        let timeout = Duration::from_secs_f64(command.timeout_s);
        let number = CAPTURES.fetch_add(1, Ordering::Relaxed);
        let cookie = format!("capture-{}-{number}", std::process::id());
        let (end, captured) = match capture(&Spec::shell(run, dir.to_path_buf(), timeout, &cookie)) {
            Ok(done) => done,
            Err(e) => return Ok(Err(format!("{described}: {e}"))),
        };
        output = captured;
        match end {
            End::Exited(code) => exit_code = code,
            End::Signaled(signal) => return Ok(Err(format!("{described} was killed by signal {signal}"))),
            End::TimedOut => return Ok(Err(format!("{described} took longer than {} s", command.timeout_s))),
            End::Interrupted(signal) => return Err(Failure::interrupted(signal)),
        }
    }
    if let Some(path) = &report {
        output = match read_report(path) {
            Ok(bytes) => Output { stdout: bytes, stderr: Vec::new(), cut: false },
            Err(e) => return Ok(Err(format!("{}: {e}", path.display()))),
        };
        described = path.display().to_string();
    }
    Ok(judge(kind, command, &output, exit_code).map_err(|reason| format!("{described}: {reason}")))
}

/// Counts; a checker that fails without an error that can be counted is a failed command, never a clean one.
fn judge(kind: Kind, command: &CountedCommand, output: &Output, exit_code: i32) -> Result<Counted, String> {
    let parsed = command.format.parse(&output.stdout, &output.stderr).map_err(|e| {
        let cut = if output.cut { " (the output was too long to keep whole)" } else { "" };
        format!("exit code {exit_code}, {e}{cut}")
    })?;
    let failures = match parsed {
        Parsed::Tests(counts) => counts.failed,
        Parsed::Problems { errors, .. } => errors,
    };
    if exit_code != 0 && failures == 0 {
        return Err(format!("exit code {exit_code} with 0 counted failures"));
    }
    Ok(Counted { kind, parsed, exit_code })
}

/// What a command printed.
struct Output {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    cut: bool,
}

/// Runs a command and keeps its output within bounds.
fn capture(spec: &Spec) -> Result<(End, Output), RunError> {
    // On disk, not in memory: nobody knows how much it will be.
    let stream = || tempfile::tempfile().map(|f| Bounded::new(BufWriter::new(f), HEAD_BYTES, TAIL_BYTES));
    let (mut stdout, mut stderr) = (stream()?, stream()?);
    let ended = process::run(spec, &mut stdout, &mut stderr)?;
    let read = |bounded: Bounded<BufWriter<std::fs::File>>| {
        let (mut sink, skipped) = bounded.finish()?;
        sink.flush()?;
        let mut file = sink.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.rewind()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>((bytes, skipped > 0))
    };
    let ((stdout, cut_out), (stderr, cut_err)) = (read(stdout)?, read(stderr)?);
    Ok((ended.end, Output { stdout, stderr, cut: cut_out || cut_err }))
}

fn read_report(path: &Path) -> std::io::Result<Vec<u8>> {
    let size = std::fs::metadata(path)?.len();
    if size > MAX_REPORT_BYTES {
        return Err(std::io::Error::other(format!("{size} bytes, at most {MAX_REPORT_BYTES} are read")));
    }
    std::fs::read(path)
}

/// The commit of the work tree, or nothing outside one.
pub fn commit(dir: &Path) -> String {
    let output = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(dir).output();
    let text = output.ok().filter(|o| o.status.success()).map(|o| o.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::parse::Format;
    use super::*;

    fn command(run: &str, format: Format) -> CountedCommand {
        CountedCommand { run: Some(run.to_owned()), format, report: None, timeout_s: 20.0 }
    }

    fn taken(kind: Kind, command: CountedCommand) -> Snapshot {
        take(&BTreeMap::from([(kind, command)]), tempfile::tempdir().unwrap().path()).unwrap()
    }

    /// Document 004, "What It Captures" and its `Snapshot`: time and exit code beside the counts.
    #[test]
    fn counts_carry_time_and_exit_code() {
        let snapshot = taken(Kind::Typecheck, command("echo 'error TS1: x' >&2; exit 2", Format::Tsc));
        assert_eq!(snapshot.typecheck, Some(TypecheckCounts { error_count: 1, exit_code: 2 }));
        assert!(snapshot.timestamp.ends_with('Z') && snapshot.failed_commands.is_empty());
        let lint =
            taken(Kind::Lint, command("echo '✖ 3 problems (1 error, 2 warnings)'; exit 1", Format::Eslint));
        assert_eq!(lint.lint, Some(LintCounts { error_count: 1, warning_count: 2 }));
    }

    /// DESIGN section 7: a checker that exits non-zero with 0 parsed errors is a failed command.
    #[test]
    fn a_checker_that_fails_without_errors_is_a_failed_command() {
        for (kind, run, format) in [
            (Kind::Typecheck, "echo 'tsc: not found'; exit 127", Format::Tsc),
            (Kind::Lint, "exit 2", Format::Eslint),
            (Kind::Tests, "echo '1 passed in 0.1s'; exit 3", Format::Pytest),
            (Kind::Tests, "echo nothing", Format::Pytest),
            (Kind::Tests, "kill -KILL $$", Format::Pytest),
        ] {
            let snapshot = taken(kind, command(run, format));
            assert!(snapshot.metrics().is_empty(), "{run}");
            assert!(snapshot.failed_commands.contains_key(kind.as_str()), "{run}");
        }
    }

    /// Document 004, "Graceful Degradation": a test command that hangs.
    #[test]
    fn a_command_that_hangs_is_a_failed_command() {
        let snapshot =
            taken(Kind::Tests, CountedCommand { timeout_s: 0.2, ..command("sleep 60", Format::Pytest) });
        assert!(snapshot.failed_commands["tests"].contains("longer than 0.2 s"));
    }

    #[test]
    fn a_report_is_counted_instead_of_the_output() {
        let dir = tempfile::tempdir().unwrap();
        let run = "echo '<testsuites><testsuite><testcase/></testsuite></testsuites>' > r.xml; echo noise";
        let of = |run: Option<&str>, report: &str| CountedCommand {
            run: run.map(str::to_owned),
            report: Some(report.into()),
            ..command("", Format::Junit)
        };
        let counted = take(&BTreeMap::from([(Kind::Tests, of(Some(run), "r.xml"))]), dir.path()).unwrap();
        assert_eq!(counted.tests.map(|t| t.passed), Some(1));
        let again = take(&BTreeMap::from([(Kind::Tests, of(None, "r.xml"))]), dir.path()).unwrap();
        assert_eq!(again.tests, counted.tests);
        let missing = take(&BTreeMap::from([(Kind::Tests, of(None, "no.xml"))]), dir.path()).unwrap();
        assert!(missing.failed_commands["tests"].contains("no.xml"));
    }

    /// Document 004, "What It Captures": what the command reports now, not what another run of it left.
    #[test]
    fn an_old_report_is_not_counted_for_a_command_that_writes_none() {
        let dir = tempfile::tempdir().unwrap();
        let old = "<testsuites><testsuite><testcase/></testsuite></testsuites>";
        crate::base::atomic::write(&dir.path().join("r.xml"), old.as_bytes()).unwrap();
        let silent = CountedCommand { report: Some("r.xml".into()), ..command("exit 0", Format::Junit) };
        let counted = take(&BTreeMap::from([(Kind::Tests, silent)]), dir.path()).unwrap();
        assert_eq!(counted.tests, None);
        assert!(counted.failed_commands["tests"].contains("r.xml"), "{:?}", counted.failed_commands);
        assert!(!dir.path().join("r.xml").exists());
        // A report that cannot be removed is not counted either.
        std::fs::create_dir(dir.path().join("d.xml")).unwrap();
        let blocked = CountedCommand { report: Some("d.xml".into()), ..command("exit 0", Format::Junit) };
        let counted = take(&BTreeMap::from([(Kind::Tests, blocked)]), dir.path()).unwrap();
        assert!(counted.failed_commands["tests"].contains("cannot be removed"), "{counted:?}");
    }

    /// Document 004, "What It Captures": a baseline is stored once, so that later changes are measured
    /// against it.
    #[test]
    fn a_stored_baseline_is_replaced_only_by_force() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(BASELINE_FILE);
        let snapshot = Snapshot { schema_version: SCHEMA_VERSION, ..Snapshot::default() };
        store(&path, &snapshot, false).unwrap();
        assert!(store(&path, &snapshot, false).unwrap_err().hint.unwrap().contains("--force"));
        store(&path, &snapshot, true).unwrap();
        assert_eq!(read(&path).unwrap(), snapshot);
        for (text, says) in [
            ("{\"schema_version\": 9, \"timestamp\": \"\", \"commitSha\": \"\"}", "schema_version"),
            ("{\"schema_version\": 1, \"tests\": {\"total\": -1}}", "line 1"),
            ("{", "unexpected content"),
        ] {
            crate::base::atomic::write(&path, text.as_bytes()).unwrap();
            assert!(read(&path).unwrap_err().message.contains(says), "{text}");
        }
    }
}
