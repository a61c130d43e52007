//! Families that a command runs. It prints its metrics as JSON lines on standard output:
//!
//! ```text
//! {"step": 10, "metrics": {"loss": 1.25, "kl_loss": NaN}}     a point of each curve
//! {"metrics": {"save_load_max_diff": 0.0}}                    final values
//! ```
//!
//! `null`, and the `NaN` and `Infinity` that Python's json writes, are values that are not finite. Lines that do not
//! begin with `{` are the job's own words.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::measure::{Runner, empty_run, finite};
use crate::base::progress::Progress;
use crate::ready::process::{self, Bounded, End, Spec};
use crate::record::Failure;
use crate::record::repro::{Point, SeedRun};

/// A longer line is no metric line.
const MAX_LINE_BYTES: usize = 1 << 20;
/// The end of the job's output that is kept for its error.
const TAIL_BYTES: usize = 2000;
/// Points of a curve at most; a job that prints more is thinned by halves.
const MAX_POINTS: usize = 8192;

/// Runs a command template.
pub struct JobRunner {
    /// Family.
    pub family: String,
    /// Shell command with `{seed}`, `{steps}`, `{device}` and `{out}`.
    pub template: String,
    /// Device as asked for.
    pub device: String,
    /// Directory for what the job writes, one below it a seed.
    pub out: PathBuf,
    /// Working directory.
    pub dir: PathBuf,
    /// Longest time of one run.
    pub timeout: Duration,
}

impl JobRunner {
    /// The command of one run.
    fn command(&self, seed: u64, steps: u64, out: &str) -> String {
        [("{seed}", seed.to_string()), ("{steps}", steps.to_string())]
            .into_iter()
            .chain([("{device}", self.device.clone()), ("{out}", out.to_owned())])
            .fold(self.template.clone(), |text, (key, value)| text.replace(key, &value))
    }
}

impl Runner for JobRunner {
    fn identity(&self) -> Result<String, Failure> {
        Ok(format!("command {}", self.template))
    }

    fn run(&self, seed: u64, steps: u64) -> Result<SeedRun, Failure> {
        let out = self.out.join(format!("{}-{seed}", self.family));
        std::fs::create_dir_all(&out).map_err(|e| Failure::io(out.display(), &e))?;
        let command = self.command(seed, steps, &out.display().to_string());
        let cookie = format!("repro-{}-{}-{seed}", std::process::id(), self.family);
        let spec = Spec::shell(&command, self.dir.clone(), self.timeout, &cookie);
        let progress = Progress::new(&format!("{} seed {seed}", self.family), steps, "steps");
        let mut lines = MetricLines::new(seed, &progress);
        let mut words = Bounded::new(Vec::new(), 0, TAIL_BYTES);
        let ended = process::run(&spec, &mut lines, &mut words);
        let words = words.finish().map(|(bytes, _)| bytes).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).trim().to_owned();
        let mut run = lines.end();
        let problem = match ended {
            Err(e) => format!("`{command}`: {e}"),
            Ok(ended) => match ended.end {
                End::Interrupted(signal) => return Err(Failure::interrupted(signal)),
                End::Exited(0) => String::new(),
                End::Exited(code) => format!("exit code {code}: {words}"),
                End::Signaled(signal) => format!("killed by signal {signal}: {words}"),
                End::TimedOut => format!("killed after {} s", self.timeout.as_secs()),
            },
        };
        // A broken line explains more than the exit code that follows from it.
        if run.error.is_empty() {
            run.error = problem;
        }
        if run.error.is_empty() && run.curves.is_empty() && run.finals.is_empty() {
            "the job printed no metrics".clone_into(&mut run.error);
        }
        Ok(run)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    step: Option<u64>,
    metrics: Map<String, Value>,
}

/// Standard output of a job, line by line as it comes.
struct MetricLines<'a> {
    run: SeedRun,
    progress: &'a Progress,
    line: Vec<u8>,
    too_long: bool,
    number: usize,
    start: Instant,
    first: Option<Seen>,
    last: Option<Seen>,
}

/// When a step was reported.
#[derive(Clone, Copy)]
struct Seen {
    step: u64,
    seconds: f64,
}

/// Set-up and steps of `whole_s` seconds. The rate is that between the first and the last reported step: what came before
/// the first is set-up and its steps. Of a job that reported one step nobody knows more than the whole.
fn split(whole_s: f64, first: Option<Seen>, last: Option<Seen>) -> (f64, f64) {
    let (Some(first), Some(last)) = (first, last) else { return (whole_s, 0.0) };
    if last.step <= first.step {
        return (0.0, whole_s);
    }
    let seconds_a_step = (last.seconds - first.seconds) / (last.step - first.step) as f64;
    let steps_s = (seconds_a_step * last.step as f64).clamp(0.0, whole_s);
    (whole_s - steps_s, steps_s)
}

impl<'a> MetricLines<'a> {
    fn new(seed: u64, progress: &'a Progress) -> Self {
        Self {
            run: empty_run(seed),
            progress,
            line: Vec::new(),
            too_long: false,
            number: 0,
            start: Instant::now(),
            first: None,
            last: None,
        }
    }

    fn end(mut self) -> SeedRun {
        self.take_line();
        (self.run.setup_s, self.run.steps_s) =
            split(self.start.elapsed().as_secs_f64(), self.first, self.last);
        self.run
    }

    fn take_line(&mut self) {
        self.number += 1;
        let line = std::mem::take(&mut self.line);
        let cut = std::mem::take(&mut self.too_long);
        if line.first() != Some(&b'{') {
            return;
        }
        let parsed = if cut {
            Err(format!("longer than {MAX_LINE_BYTES} bytes"))
        } else {
            serde_json::from_slice::<Line>(&without_python_numbers(&line)).map_err(|e| e.to_string())
        };
        match parsed {
            Ok(line) => self.take_metrics(&line),
            Err(detail) => self.problem(&detail),
        }
    }

    fn problem(&mut self, detail: &str) {
        if self.run.error.is_empty() {
            self.run.error = format!("line {} of the job's output: {detail}", self.number);
        }
    }

    fn take_metrics(&mut self, line: &Line) {
        for (name, value) in &line.metrics {
            let value = match value {
                Value::Null => f64::NAN,
                Value::Number(number) => number.as_f64().unwrap_or(f64::NAN),
                other => {
                    let found = other.to_string().chars().take(60).collect::<String>();
                    self.problem(&format!("metric {name} is {found}, expected a number"));
                    continue;
                }
            };
            let value = finite(&mut self.run, name, value);
            match line.step {
                None => {
                    self.run.finals.insert(name.clone(), value);
                }
                Some(step) => {
                    let curve = self.run.curves.entry(name.clone()).or_default();
                    curve.push(Point { step, value });
                    if curve.len() > MAX_POINTS {
                        let last = curve.len() - 1;
                        let mut index = 0;
                        curve.retain(|_| {
                            index += 1;
                            index % 2 == 1 || index > last
                        });
                    }
                }
            }
        }
        if let Some(step) = line.step {
            let seen = Seen { step, seconds: self.start.elapsed().as_secs_f64() };
            self.first.get_or_insert(seen);
            if self.last.is_none_or(|last| step > last.step) {
                self.last = Some(seen);
            }
            self.progress.inc(step.saturating_sub(self.run.steps_done));
            self.run.steps_done = self.run.steps_done.max(step);
        }
    }
}

impl Write for MetricLines<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for (index, part) in bytes.split(|b| *b == b'\n').enumerate() {
            if index > 0 {
                self.take_line();
            }
            let room = MAX_LINE_BYTES.saturating_sub(self.line.len());
            self.too_long |= part.len() > room;
            self.line.extend(&part[..part.len().min(room)]);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `NaN`, `Infinity` and `-Infinity` outside strings as `null`.
fn without_python_numbers(line: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(line.len());
    let (mut in_string, mut at) = (false, 0);
    while at < line.len() {
        let rest = &line[at..];
        let found = [&b"NaN"[..], b"-Infinity", b"Infinity"].into_iter().find(|word| rest.starts_with(word));
        match (in_string, found) {
            (false, Some(word)) => {
                plain.extend(b"null");
                at += word.len();
                continue;
            }
            (true, _) if rest[0] == b'\\' => {
                plain.extend(&rest[..rest.len().min(2)]);
                at += 2;
                continue;
            }
            _ => {}
        }
        in_string ^= rest[0] == b'"';
        plain.push(rest[0]);
        at += 1;
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(script: &str, steps: u64, timeout_ms: u64) -> SeedRun {
        let dir = tempfile::tempdir().unwrap();
        let runner = JobRunner {
            family: "f".into(),
            template: script.into(),
            device: "cpu".into(),
            out: dir.path().join("out"),
            dir: dir.path().into(),
            timeout: Duration::from_millis(timeout_ms),
        };
        runner.run(7, steps).unwrap()
    }

    #[test]
    fn metrics_are_curves_and_finals_and_other_lines_are_words() {
        let script = r#"echo starting; for s in 1 2 3; do echo "{\"step\": $s, \"metrics\": {\"loss\": $s.5}}"; done
            echo '{"metrics": {"seed": {seed}, "n": {steps}}}'"#;
        let run = ran(script, 3, 20_000);
        assert_eq!((run.error.as_str(), run.steps_done, run.curves["loss"].len()), ("", 3, 3));
        assert_eq!((run.finals["seed"], run.finals["n"]), (Some(7.0), Some(3.0)));
    }

    /// Document 000: no NaN or Inf; Python prints them as words that are no JSON.
    #[test]
    fn values_that_are_not_finite_are_counted() {
        let script = r#"echo '{"step": 1, "metrics": {"loss": NaN, "a": -Infinity, "b": null, "NaN": 1}}'"#;
        let run = ran(script, 1, 20_000);
        assert_eq!(run.error, "");
        let counted: Vec<(&str, u64)> = run.non_finite.iter().map(|(n, c)| (n.as_str(), *c)).collect();
        assert_eq!(counted, [("a", 1), ("b", 1), ("loss", 1)]);
        assert_eq!(run.curves["NaN"][0].value, Some(1.0));
    }

    /// Document 000, "Estimate Runtime from Measured Results": the steps before the first line are steps.
    #[test]
    fn time_is_split_by_the_rate_between_the_first_and_the_last_line() {
        let seen = |step, seconds| Some(Seen { step, seconds });
        let close = |(a, b): (f64, f64), (x, y): (f64, f64)| (a - x).abs() < 1e-9 && (b - y).abs() < 1e-9;
        // 4 s of loading, 0.1 s a step, a line every 10 steps, half a second of saving.
        assert!(close(split(9.5, seen(10, 5.0), seen(50, 9.0)), (4.5, 5.0)));
        assert_eq!(split(9.5, seen(50, 9.0), seen(50, 9.0)), (0.0, 9.5));
        assert_eq!(split(9.5, None, None), (9.5, 0.0));
        // Slower steps than the whole has room for.
        assert_eq!(split(9.5, seen(49, 5.0), seen(50, 9.0)), (0.0, 9.5));
        let run =
            ran(r#"for s in 5 10; do echo "{\"step\": $s, \"metrics\": {\"l\": 1}}"; done"#, 10, 20_000);
        assert!(run.steps_s >= 0.0 && run.setup_s >= 0.0 && run.steps_s + run.setup_s < 20.0);
    }

    #[test]
    fn what_goes_wrong_is_the_runs_error() {
        for (script, says) in [
            ("echo boom >&2; exit 3", "exit code 3: boom"),
            ("kill -SEGV $$", "signal 11"),
            ("echo hello", "printed no metrics"),
            ("echo '{\"step\": 1, \"metrics\": {\"loss\": \"x\"}}'", "metric loss is \"x\""),
            ("echo fine; echo '{\"step\": 1, \"loss\": 2}'", "line 2 of the job's output"),
            ("echo '{\"step\": 1'", "line 1"),
            ("printf '{'; head -c 2000000 /dev/zero | tr '\\0' x", "longer than"),
        ] {
            let run = ran(script, 1, 20_000);
            assert!(run.error.contains(says), "{script}: {}", run.error);
        }
        assert!(ran("sleep 60", 1, 200).error.contains("killed after"));
    }

    #[test]
    fn long_curves_are_thinned_and_keep_their_end() {
        let script = "awk 'BEGIN { for (i = 1; i <= 20000; i++) print \"{\\\"step\\\": \" i \", \\\"metrics\\\": {\\\"l\\\": 1}}\" }'";
        let run = ran(script, 20_000, 60_000);
        assert!(run.curves["l"].len() <= MAX_POINTS);
        assert_eq!((run.curves["l"].last().map(|p| p.step), run.steps_done), (Some(20_000), 20_000));
    }
}
