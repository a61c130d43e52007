//! Failure triage: how a process or a Slurm job ended, and what its log says, as a failure class.
//!
//! One table of log patterns, one of Slurm states, one of exit codes. Patterns are whole words: `auth` is not `author`,
//! `OOM` is not `room`. A later line of the log counts before an earlier one, a pattern further up in the table before
//! one below it: the cause is named close to the end, and a traceback says more than the word "error".

use std::sync::LazyLock;

use regex::Regex;

use crate::record::verdict::exit_code;
use crate::record::{Failure, FailureClass};

/// What is known about an end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ended<'a> {
    /// Exit code of the process.
    pub exit_code: Option<u8>,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// State of its Slurm job, e.g. `NODE_FAIL` or `CANCELLED by 0`.
    pub slurm_state: Option<&'a str>,
    /// Last part of its log.
    pub log: &'a str,
}

/// What an end means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Triage {
    /// Failure class.
    pub class: FailureClass,
    /// Whether doing the same again may succeed without anybody's help.
    pub retry: bool,
    /// What happened, in words.
    pub what: String,
    /// Lines of the log that say it; empty where the log did not decide.
    pub excerpt: String,
    /// What to do.
    pub hint: &'static str,
}

impl From<Triage> for Failure {
    fn from(triage: Triage) -> Self {
        let message = match triage.excerpt.as_str() {
            "" => triage.what,
            excerpt => format!("{}; its log says: {excerpt}", triage.what),
        };
        Self::new(triage.class, message).with_hint(triage.hint)
    }
}

/// One row: what is seen, what it means.
struct Rule<P> {
    seen: P,
    class: FailureClass,
    retry: bool,
    hint: &'static str,
}

const fn rule<P>(seen: P, class: FailureClass, retry: bool, hint: &'static str) -> Rule<P> {
    Rule { seen, class, retry, hint }
}

use FailureClass as C;

const RESUME: &str = "resume the run";
const MEMORY: &str = "raise `memory` of this stage in the cluster profile";
const GPU_MEMORY: &str =
    "lower the engine's memory use (--gpu-memory-utilization, --max-model-len), or give it more GPUs";
const CREDENTIALS: &str = "give the endpoint's API key (engine.api_key_file), or correct it";
const RATE: &str = "raise the server's rate limit, or lower the number of requests at once";
const PROGRAM: &str = "install day0 where every node sees it, or set `program` in the cluster profile";

/// States of a Slurm job that say what happened, as squeue, sacct and scontrol write them (job_state_codes).
const STATES: &[Rule<&str>] = &[
    rule("TIMEOUT", C::InfraTransient, true, "raise `time` of this stage in the cluster profile"),
    rule("DEADLINE", C::InfraTransient, false, "the job's deadline passed; resume without one"),
    rule("PREEMPTED", C::InfraTransient, true, RESUME),
    rule("NODE_FAIL", C::InfraTransient, true, RESUME),
    rule("BOOT_FAIL", C::InfraTransient, true, RESUME),
    rule("REVOKED", C::InfraTransient, true, RESUME),
    rule("OUT_OF_MEMORY", C::UserConfigError, false, MEMORY),
    // Somebody decided so: it is not submitted again without being asked.
    rule("CANCELLED", C::InfraTransient, false, RESUME),
];

/// Words of a log. `\b` stands at both ends of each.
const PATTERNS: &[Rule<&str>] = &[
    rule(
        r"CUDA out of memory|torch\.(cuda\.)?OutOfMemoryError|CUDA error: out of memory|No available memory for the cache blocks",
        C::DeploymentHealthFailed,
        false,
        GPU_MEMORY,
    ),
    rule(
        r"oom[-_]?kill(er|ed)?|OOM|Out of memory: Killed process|out[- ]of[- ]memory",
        C::UserConfigError,
        false,
        MEMORY,
    ),
    // slurmstepd's last words in the log of a job that Slurm ended.
    rule(r"DUE TO TIME LIMIT", C::InfraTransient, true, "raise `time` of this stage in the cluster profile"),
    rule(r"DUE TO (PREEMPTION|NODE FAILURE)", C::InfraTransient, true, RESUME),
    rule(
        r"No space left on device|Disk quota exceeded|ENOSPC|EDQUOT",
        C::InfraTransient,
        false,
        "free space in the run directory's file system and resume",
    ),
    rule(
        r"(status|code|error|HTTP/[0-9.]+)[ :=]*401|401 Unauthorized|Unauthorized|unauthenticated|invalid[ _]api[ _]key|incorrect api key|authentication (failed|error)|auth",
        C::EvalJudgeFailed,
        false,
        CREDENTIALS,
    ),
    rule(
        r"(status|code|error|HTTP/[0-9.]+)[ :=]*403|403 Forbidden|permission_denied|access denied",
        C::EvalJudgeFailed,
        false,
        CREDENTIALS,
    ),
    rule(
        r"(status|code|error|HTTP/[0-9.]+)[ :=]*429|too many requests|rate[- ]limit(s|ed|ing)?( exceeded)?",
        C::EvalJudgeFailed,
        false,
        RATE,
    ),
    rule(
        r"Xid|ECC error|uncorrectable ECC|CUDA error: (unspecified launch failure|an illegal memory access)|NCCL (error|WARN|timeout)|ncclSystemError|ncclRemoteError",
        C::InfraTransient,
        true,
        "another node may work: exclude this one with `sbatch: [\"--exclude=NODE\"]`",
    ),
    rule(
        r"no kernel image is available|is not supported on this (GPU|device)|Model architectures? .{0,80} (is|are) not supported|Unknown quantization method",
        C::ModelUnsupported,
        false,
        "use another recipe, or an engine that loads this model",
    ),
    rule(r"Address already in use|EADDRINUSE", C::InfraTransient, true, RESUME),
    rule(
        r"Connection (reset|refused|aborted)( by peer)?|Broken pipe|Stale file handle|Input/output error|Transport endpoint is not connected|Temporary failure in name resolution|timed out",
        C::InfraTransient,
        true,
        RESUME,
    ),
    rule(
        r"command not found|No such file or directory",
        C::UserConfigError,
        false,
        "every node must see the program and every path that the profile and the configuration name",
    ),
    rule(r"panicked|Segmentation fault|core dumped", C::Unknown, false, "read the log"),
    NO_CAUSE,
];

/// What names no cause: it counts only where no other line does.
const NO_CAUSE: Rule<&str> = rule(r"Traceback", C::Unknown, false, "read the log");

/// Exit codes: day0's own, and the shell's for a program that cannot be run.
const EXITS: &[Rule<u8>] = &[
    rule(exit_code::TRANSIENT, C::InfraTransient, true, RESUME),
    rule(exit_code::USAGE, C::UserConfigError, false, "correct what the log names"),
    rule(126, C::UserConfigError, false, PROGRAM),
    rule(127, C::UserConfigError, false, PROGRAM),
];

static COMPILED: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    let whole = |rule: &Rule<&str>| Regex::new(&format!(r"(?i)\b(?:{})\b", rule.seen));
    PATTERNS.iter().filter_map(|rule| whole(rule).ok()).collect()
});

/// Lines of the log that are looked at.
const LOG_LINES: usize = 400;
/// Characters of an excerpt.
const EXCERPT_CHARS: usize = 300;

/// What an end means: by Slurm's state where it is telling, else by what the log says, else by exit code and signal.
pub fn classify(ended: &Ended<'_>) -> Triage {
    let how = describe(ended);
    let of = |class, retry, hint, excerpt| Triage { class, retry, what: how.clone(), excerpt, hint };
    let state = ended.slurm_state.map(|s| s.split_whitespace().next().unwrap_or_default());
    let state = state.map(|s| s.trim_end_matches('+'));
    if let Some(rule) = STATES.iter().find(|rule| Some(rule.seen) == state) {
        return of(rule.class, rule.retry, rule.hint, String::new());
    }
    // The program's own word that the fault will pass weighs more than what scrolled by before.
    let by_exit = EXITS.iter().find(|rule| Some(rule.seen) == ended.exit_code);
    let by_log = in_log(ended.log);
    match (by_exit, by_log) {
        (Some(exit), Some((rule, line))) if exit.class != rule.class && exit.seen != exit_code::USAGE => {
            of(exit.class, exit.retry && rule.retry, rule.hint, line)
        }
        (_, Some((rule, line))) => of(rule.class, rule.retry, rule.hint, line),
        (Some(rule), None) => of(rule.class, rule.retry, rule.hint, String::new()),
        // Killed without a word: by a node that shuts down, an operator, or the kernel's OOM killer.
        (None, None) if killed(ended) => of(C::InfraTransient, true, RESUME, String::new()),
        (None, None) => of(C::Unknown, false, "read the log", last_line(ended.log)),
    }
}

fn killed(ended: &Ended<'_>) -> bool {
    const SIGKILL: i32 = 9;
    const SIGTERM: i32 = 15;
    let signal = ended.signal.or(ended.exit_code.filter(|c| *c > 128).map(|c| i32::from(c) - 128));
    signal.is_some_and(|s| matches!(s, SIGKILL | SIGTERM))
}

fn describe(ended: &Ended<'_>) -> String {
    let mut parts = Vec::new();
    parts.extend(ended.slurm_state.map(|s| format!("Slurm state {s}")));
    parts.extend(ended.exit_code.filter(|c| *c != 0).map(|c| format!("exit code {c}")));
    parts.extend(ended.signal.filter(|s| *s != 0).map(|s| format!("signal {s}")));
    if parts.is_empty() { "ended without a result".to_owned() } else { parts.join(", ") }
}

/// The rule of the last line that names a cause, else of the last traceback: an engine of several processes prints that of
/// each, the one with the cause first.
fn in_log(log: &str) -> Option<(&'static Rule<&'static str>, String)> {
    let telling = log.lines().rev().take(LOG_LINES).filter_map(|line| {
        let at = COMPILED.iter().position(|pattern| pattern.is_match(line))?;
        Some((&PATTERNS[at], line))
    });
    let mut last = None;
    for (rule, line) in telling {
        if rule.seen != NO_CAUSE.seen {
            return Some((rule, shorten(line)));
        }
        last = last.or_else(|| Some((rule, shorten(line))));
    }
    last
}

fn last_line(log: &str) -> String {
    log.lines().rev().find(|line| !line.trim().is_empty()).map(shorten).unwrap_or_default()
}

fn shorten(line: &str) -> String {
    line.trim().chars().take(EXCERPT_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_compiles() {
        assert_eq!(COMPILED.len(), PATTERNS.len());
    }

    #[test]
    fn slurm_states() {
        let cases = [
            ("TIMEOUT", C::InfraTransient, true),
            ("PREEMPTED", C::InfraTransient, true),
            ("NODE_FAIL", C::InfraTransient, true),
            ("OUT_OF_MEMORY", C::UserConfigError, false),
            ("OUT_OF_ME+", C::Unknown, false),
            ("CANCELLED by 0", C::InfraTransient, false),
            ("CANCELLED+", C::InfraTransient, false),
            ("FAILED", C::Unknown, false),
        ];
        for (state, class, retry) in cases {
            let found = classify(&Ended { slurm_state: Some(state), ..Ended::default() });
            assert_eq!((found.class, found.retry), (class, retry), "{state}");
        }
        // The state says more than what a job that was stopped wrote before.
        let ended = Ended { slurm_state: Some("TIMEOUT"), log: "429 Too Many Requests", ..Ended::default() };
        assert_eq!(classify(&ended).class, C::InfraTransient);
    }

    #[test]
    fn log_lines() {
        let cases = [
            ("torch.OutOfMemoryError: CUDA out of memory. Tried", C::DeploymentHealthFailed, false),
            ("slurmstepd: error: Detected 1 oom_kill event", C::UserConfigError, false),
            ("slurmstepd: error: Detected 1 oom-kill event(s)", C::UserConfigError, false),
            ("day0: write: No space left on device (os error 28)", C::InfraTransient, false),
            (
                "slurmstepd: error: *** JOB 15 ON n1 CANCELLED AT 2026-01-31T12:00:00 DUE TO TIME LIMIT ***",
                C::InfraTransient,
                true,
            ),
            (
                "slurmstepd: error: *** JOB 15 ON n1 CANCELLED AT 2026-01-31T12:00:00 DUE TO PREEMPTION ***",
                C::InfraTransient,
                true,
            ),
            (
                "slurmstepd: error: *** STEP 15.0 ON n1 CANCELLED AT 2026-01-31T12:00:00 DUE TO NODE FAILURE, SEE SLURMCTLD LOG ***",
                C::InfraTransient,
                true,
            ),
            ("HTTP/1.1 401 Unauthorized", C::EvalJudgeFailed, false),
            ("auth: bad token", C::EvalJudgeFailed, false),
            ("status 429: slow down", C::EvalJudgeFailed, false),
            ("Rate limit exceeded", C::EvalJudgeFailed, false),
            ("NVRM: Xid (PCI:0000:3b:00): 79", C::InfraTransient, true),
            ("connection refused", C::InfraTransient, true),
            ("bash: vllm: command not found", C::UserConfigError, false),
            ("ValueError: Model architectures ['X'] are not supported for now.", C::ModelUnsupported, false),
            ("Traceback (most recent call last):", C::Unknown, false),
        ];
        for (line, class, retry) in cases {
            let log = format!("starting\n{line}\nbye\n");
            let found = classify(&Ended { exit_code: Some(1), log: &log, ..Ended::default() });
            assert_eq!((found.class, found.retry), (class, retry), "{line}");
            assert_eq!(found.excerpt, line);
        }
    }

    /// vLLM's engine core ends first, then the server that waited for it.
    #[test]
    fn a_traceback_does_not_hide_the_cause_before_it() {
        let log = "(EngineCore_0) Traceback (most recent call last):\n\
                   (EngineCore_0) torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n\
                   (APIServer) Traceback (most recent call last):\n\
                   (APIServer) RuntimeError: Engine core initialization failed. See root cause above.\n";
        let found = classify(&Ended { exit_code: Some(1), log, ..Ended::default() });
        assert_eq!((found.class, found.hint), (C::DeploymentHealthFailed, GPU_MEMORY));
        assert!(found.excerpt.contains("Tried to allocate"), "{}", found.excerpt);
        // A crash is a cause, whatever was said before it.
        let log = "connection refused, trying again\nSegmentation fault (core dumped)\n";
        assert_eq!(classify(&Ended { exit_code: Some(139), log, ..Ended::default() }).class, C::Unknown);
    }

    #[test]
    fn words_within_words_are_not_found() {
        let logs = [
            "the author wrote 4012 rooms",
            "401 of 429 items",
            "room 1401",
            "bloom",
            "timeouts=3",
            "authored by",
            "zoomed in",
        ];
        for line in logs {
            let found = classify(&Ended { exit_code: Some(1), log: line, ..Ended::default() });
            assert_eq!((found.class, found.retry), (C::Unknown, false), "{line}");
        }
    }

    #[test]
    fn the_last_telling_line_counts() {
        let log = "Connection reset by peer\nretrying\nstatus 401: bad key\n";
        assert_eq!(
            classify(&Ended { exit_code: Some(1), log, ..Ended::default() }).class,
            C::EvalJudgeFailed
        );
    }

    #[test]
    fn exit_codes_and_signals() {
        let cases = [
            (Some(75), None, C::InfraTransient, true),
            (Some(2), None, C::UserConfigError, false),
            (Some(127), None, C::UserConfigError, false),
            (Some(137), None, C::InfraTransient, true),
            (None, Some(9), C::InfraTransient, true),
            (None, Some(11), C::Unknown, false),
            (Some(101), None, C::Unknown, false),
        ];
        for (exit_code, signal, class, retry) in cases {
            let found = classify(&Ended { exit_code, signal, ..Ended::default() });
            assert_eq!((found.class, found.retry), (class, retry), "{exit_code:?} {signal:?}");
        }
        // A full disk passes only once somebody makes room.
        let log = "No space left on device";
        let found = classify(&Ended { exit_code: Some(75), log, ..Ended::default() });
        assert_eq!((found.class, found.retry), (C::InfraTransient, false));
    }
}
