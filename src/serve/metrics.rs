//! Counters of the server in Prometheus' text format.
//!
//! Format: prometheus.io/docs/instrumenting/exposition_formats, version 0.0.4. Names end in their unit; what vLLM also
//! measures has its name after the prefix.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of latency buckets in seconds.
const SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// Upper bounds of batch sizes.
const SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// Everything the server counts.
#[derive(Debug)]
pub(super) struct Metrics {
    /// Answers by path and status.
    answers: Mutex<BTreeMap<(&'static str, u16), u64>>,
    pub requests_running: Gauge,
    pub requests_waiting: Gauge,
    pub sequences_running: Gauge,
    pub sequences_waiting: Gauge,
    pub kv_cache_bytes: Gauge,
    pub prompt_tokens: Gauge,
    pub generation_tokens: Gauge,
    pub prefix_cache_queries: Gauge,
    pub prefix_cache_hits: Gauge,
    pub requests_cancelled: Gauge,
    pub batch_size: Histogram,
    pub request_seconds: Histogram,
    pub queue_seconds: Histogram,
    pub first_token_seconds: Histogram,
    pub inter_token_seconds: Histogram,
}

/// A number that goes up, or up and down.
#[derive(Debug, Default)]
pub(super) struct Gauge(AtomicU64);

impl Gauge {
    pub fn set(&self, value: usize) {
        self.0.store(value as u64, Ordering::Relaxed);
    }

    pub fn add(&self, value: usize) {
        self.0.fetch_add(value as u64, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts by upper bound.
#[derive(Debug)]
pub(super) struct Histogram {
    bounds: &'static [f64],
    state: Mutex<Counts>,
}

#[derive(Debug, Default, Clone)]
struct Counts {
    /// One for each bound, and one for what lies above all.
    buckets: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, state: Mutex::new(Counts { buckets: vec![0; bounds.len() + 1], sum: 0.0 }) }
    }

    pub fn observe(&self, value: f64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.buckets[self.bounds.partition_point(|bound| *bound < value)] += 1;
        state.sum += value;
    }

    pub fn time(&self, duration: Duration) {
        self.observe(duration.as_secs_f64());
    }

    fn write(&self, out: &mut String, name: &str) {
        let counts = self.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut total = 0;
        let bounds = self.bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(&counts.buckets) {
            total += count;
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {total}");
        }
        let _ = writeln!(out, "{name}_sum {}\n{name}_count {total}", counts.sum);
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds = || Histogram::new(SECONDS);
        Self {
            answers: Mutex::default(),
            requests_running: Gauge::default(),
            requests_waiting: Gauge::default(),
            sequences_running: Gauge::default(),
            sequences_waiting: Gauge::default(),
            kv_cache_bytes: Gauge::default(),
            prompt_tokens: Gauge::default(),
            generation_tokens: Gauge::default(),
            prefix_cache_queries: Gauge::default(),
            prefix_cache_hits: Gauge::default(),
            requests_cancelled: Gauge::default(),
            batch_size: Histogram::new(SIZES),
            request_seconds: seconds(),
            queue_seconds: seconds(),
            first_token_seconds: seconds(),
            inter_token_seconds: seconds(),
        }
    }
}

impl Metrics {
    /// An answer was sent.
    pub fn answered(&self, path: &'static str, status: u16) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        *answers.entry((path, status)).or_default() += 1;
    }

    /// The page that Prometheus reads.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let head = |out: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        head(&mut out, "day0_answers_total", "counter", "Answers by path and HTTP status.");
        for ((path, status), count) in &*self.answers.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = writeln!(out, "day0_answers_total{{path=\"{path}\",status=\"{status}\"}} {count}");
        }
        for (name, kind, value, help) in self.numbers() {
            head(&mut out, name, kind, help);
            let _ = writeln!(out, "{name} {}", value.get());
        }
        for (name, histogram, help) in self.histograms() {
            head(&mut out, name, "histogram", help);
            histogram.write(&mut out, name);
        }
        out
    }

    fn numbers(&self) -> [(&'static str, &'static str, &Gauge, &'static str); 10] {
        let (gauge, counter) = ("gauge", "counter");
        [
            ("day0_num_requests_running", gauge, &self.requests_running, "Requests being worked on."),
            ("day0_num_requests_waiting", gauge, &self.requests_waiting, "Requests in the queue."),
            ("day0_num_sequences_running", gauge, &self.sequences_running, "Sequences being generated."),
            ("day0_num_sequences_waiting", gauge, &self.sequences_waiting, "Sequences that wait for room."),
            ("day0_kv_cache_bytes", gauge, &self.kv_cache_bytes, "Keys and values of running sequences."),
            ("day0_prompt_tokens_total", counter, &self.prompt_tokens, "Prompt tokens taken in."),
            ("day0_generation_tokens_total", counter, &self.generation_tokens, "Tokens generated."),
            (
                "day0_prefix_cache_queries_total",
                counter,
                &self.prefix_cache_queries,
                "Input tokens of scored prompts.",
            ),
            (
                "day0_prefix_cache_hits_total",
                counter,
                &self.prefix_cache_hits,
                "Those that were shared with another prompt and not computed again.",
            ),
            (
                "day0_requests_cancelled_total",
                counter,
                &self.requests_cancelled,
                "Requests whose client went away.",
            ),
        ]
    }

    fn histograms(&self) -> [(&'static str, &Histogram, &'static str); 5] {
        [
            ("day0_batch_size", &self.batch_size, "Sequences or prompts in one call of the engine."),
            ("day0_request_duration_seconds", &self.request_seconds, "From the request to its last token."),
            (
                "day0_request_queue_time_seconds",
                &self.queue_seconds,
                "From the request to the first of its prompts in the engine.",
            ),
            (
                "day0_time_to_first_token_seconds",
                &self.first_token_seconds,
                "From the request to its first token.",
            ),
            ("day0_inter_token_latency_seconds", &self.inter_token_seconds, "Between tokens of a choice."),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_prometheus_text() {
        let metrics = Metrics::default();
        metrics.answered("/v1/models", 200);
        metrics.answered("/v1/models", 200);
        metrics.answered("other", 404);
        metrics.prompt_tokens.add(7);
        metrics.queue_seconds.time(Duration::from_millis(5));
        metrics.queue_seconds.observe(1e6);
        let page = metrics.render();
        for line in [
            "day0_answers_total{path=\"/v1/models\",status=\"200\"} 2",
            "day0_answers_total{path=\"other\",status=\"404\"} 1",
            "# TYPE day0_prompt_tokens_total counter",
            "day0_prompt_tokens_total 7",
            "day0_request_queue_time_seconds_bucket{le=\"0.0025\"} 0",
            "day0_request_queue_time_seconds_bucket{le=\"0.005\"} 1",
            "day0_request_queue_time_seconds_bucket{le=\"+Inf\"} 2",
            "day0_request_queue_time_seconds_count 2",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
        let names: Vec<&str> = page.lines().filter_map(|l| l.strip_prefix("# TYPE ")).collect();
        assert!(names.len() == 16 && page.ends_with('\n'));
    }
}
