//! Progress on standard error: a bar with rate and ETA on a terminal, plain lines otherwise, nothing when quiet.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How much to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    /// Errors only.
    Quiet,
    /// Progress and results.
    Normal,
    /// Details too.
    Verbose,
}

static VERBOSITY: AtomicU8 = AtomicU8::new(1);

/// Sets the verbosity of the process.
pub fn set_verbosity(verbosity: Verbosity) {
    VERBOSITY.store(verbosity as u8, Ordering::Relaxed);
}

/// Whether progress is shown at all.
pub fn is_quiet() -> bool {
    VERBOSITY.load(Ordering::Relaxed) == Verbosity::Quiet as u8
}

/// Whether details are asked for.
pub fn is_verbose() -> bool {
    VERBOSITY.load(Ordering::Relaxed) == Verbosity::Verbose as u8
}

/// Writes one line to standard error unless quiet.
pub fn note(line: &str) {
    if !is_quiet() {
        // Losing a progress line (a closed pipe) must not stop the work.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// Writes one line to standard error when verbose.
pub fn detail(line: &str) {
    if is_verbose() {
        note(line);
    }
}

/// Progress of one piece of long work.
pub struct Progress {
    label: String,
    bar: Option<ProgressBar>,
    lines: Option<Mutex<Lines>>,
}

struct Lines {
    total: u64,
    done: u64,
    start: Instant,
    last: Instant,
}

/// A plain line at most this often.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

impl Progress {
    /// Starts work of `total` steps named by the plural noun `unit`, e.g. `requests`.
    pub fn new(label: &str, total: u64, unit: &str) -> Self {
        let mut progress = Self { label: label.to_owned(), bar: None, lines: None };
        if is_quiet() {
            return progress;
        }
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8));
            let template =
                format!("{{prefix:>20}} {{bar:30}} {{pos}}/{{len}} {unit}, {{per_sec}}, ETA {{eta}}");
            if let Ok(style) = ProgressStyle::with_template(&template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(label.to_owned());
            progress.bar = Some(bar);
        } else {
            let now = Instant::now();
            progress.lines = Some(Mutex::new(Lines { total, done: 0, start: now, last: now }));
        }
        progress
    }

    /// Reports `n` more steps done.
    pub fn inc(&self, n: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(n);
        }
        if let Some(Ok(mut lines)) = self.lines.as_ref().map(Mutex::lock) {
            lines.done += n;
            if lines.last.elapsed() >= LINE_INTERVAL && lines.done < lines.total {
                lines.last = Instant::now();
                let rate = lines.done as f64 / lines.start.elapsed().as_secs_f64();
                let eta = (lines.total - lines.done) as f64 / rate.max(1e-9);
                let eta = super::units::human_seconds(eta);
                note(&format!("{}: {}/{}, {rate:.1}/s, ETA {eta}", self.label, lines.done, lines.total));
            }
        }
    }

    /// Ends the display.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
