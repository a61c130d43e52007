//! How fast a server generates and scores: clients that send one request after the other, and percentiles of what they
//! waited for.
//!
//! TTFT is the time from sending a request to the first text of its stream; TPOT the time from there to the last,
//! divided by the tokens after the first (both as vLLM's `bench serve` defines them).

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, json};

use super::Scorer;
use super::endpoint::{EndpointClient, EndpointError, EndpointOptions, EndpointScorer};
use crate::record::failure::chain;
use crate::record::score::ScoreRequest;
use crate::record::serve::ServeSpeed;
use crate::serve::TextCodec;

/// Tokens of a prompt that [`glance`] scores.
const SCORED_TOKENS: usize = 128;

/// Generation load.
#[derive(Debug, Clone)]
pub struct ServeLoad {
    /// Requests in all.
    pub requests: usize,
    /// Clients at once.
    pub concurrency: usize,
    /// Words of a prompt; every prompt is another.
    pub prompt_words: usize,
    /// Tokens asked for; the end token does not end them where the server lets it be ignored.
    pub max_tokens: usize,
    /// No request is sent after this time, but the first.
    pub limit: Option<Duration>,
}

/// Percentiles of a sample, by the nearest rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90 of 100.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BenchReport {
    /// Requests answered.
    pub completed: usize,
    /// Requests that failed, and the first reason.
    pub failed: usize,
    /// Why the first of them did.
    pub first_failure: Option<String>,
    /// Clients at once.
    pub concurrency: usize,
    /// From the first request to the last answer.
    pub duration_seconds: f64,
    /// Input tokens of the answered requests.
    pub prompt_tokens: usize,
    /// Tokens generated, or scored.
    pub output_tokens: usize,
    /// Requests per second.
    pub requests_per_second: f64,
    /// Input tokens per second.
    pub prompt_tokens_per_second: f64,
    /// Generated or scored tokens per second.
    pub output_tokens_per_second: f64,
    /// Time of a whole request.
    pub latency_ms: Option<Percentiles>,
    /// Time to the first text.
    pub ttft_ms: Option<Percentiles>,
    /// Time for each token after the first.
    pub tpot_ms: Option<Percentiles>,
}

/// What one request took.
#[derive(Debug, Clone, Default)]
struct Sample {
    prompt_tokens: usize,
    output_tokens: usize,
    requests: usize,
    latency: Duration,
    ttft: Option<Duration>,
    tpot: Option<Duration>,
}

/// Streams completions from any OpenAI-compatible endpoint.
pub fn serve(options: &EndpointOptions, load: &ServeLoad) -> Result<BenchReport, EndpointError> {
    let client = EndpointClient::new(options)?;
    let model = client.served_model()?.id;
    let size = Size { calls: load.requests, concurrency: load.concurrency, limit: load.limit };
    Ok(run(size, &|i| {
        let body = json!({
            "model": model, "prompt": prompt(i, load.prompt_words), "max_tokens": load.max_tokens,
            "temperature": 0, "stream": true, "stream_options": {"include_usage": true},
        });
        stream_one(&client, &body)
    }))
}

/// Scores requests, `batch_size` in a call.
pub fn score(
    scorer: &dyn Scorer,
    requests: &[ScoreRequest],
    batch_size: usize,
    concurrency: usize,
    limit: Option<Duration>,
) -> BenchReport {
    let batches: Vec<&[ScoreRequest]> = requests.chunks(batch_size.max(1)).collect();
    let size = Size { calls: batches.len(), concurrency, limit };
    run(size, &|i| {
        let (batch, start) = (batches[i], Instant::now());
        let results = scorer.score(batch, &|_| ());
        let latency = start.elapsed();
        let mut sample = Sample { requests: batch.len(), latency, ..Sample::default() };
        for (request, result) in batch.iter().zip(results) {
            sample.prompt_tokens += request.tokens.len();
            sample.output_tokens += result.map_err(|e| e.message)?.token_logprobs.len();
        }
        Ok(sample)
    })
}

/// How much is asked.
#[derive(Clone, Copy)]
struct Size {
    calls: usize,
    concurrency: usize,
    /// No call is begun after this time, but the first.
    limit: Option<Duration>,
}

/// Calls by so many threads.
fn run(size: Size, call: &(dyn Fn(usize) -> Result<Sample, String> + Sync)) -> BenchReport {
    let Size { calls: count, concurrency, limit } = size;
    let (next, outcomes, start) = (AtomicUsize::new(0), Mutex::new(Vec::new()), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..concurrency.clamp(1, count.max(1)) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let is_over = limit.is_some_and(|limit| i > 0 && start.elapsed() > limit);
                    if i >= count || is_over {
                        return;
                    }
                    let outcome = call(i);
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                }
            });
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    report(outcomes.into_inner().unwrap_or_else(PoisonError::into_inner), concurrency, seconds)
}

fn report(outcomes: Vec<Result<Sample, String>>, concurrency: usize, seconds: f64) -> BenchReport {
    let first_failure = outcomes.iter().find_map(|o| o.as_ref().err().cloned());
    let failed = outcomes.iter().filter(|o| o.is_err()).count();
    let samples: Vec<Sample> = outcomes.into_iter().flatten().collect();
    let sum = |of: fn(&Sample) -> usize| samples.iter().map(of).sum::<usize>();
    let (completed, prompt_tokens, output_tokens) =
        (sum(|s| s.requests), sum(|s| s.prompt_tokens), sum(|s| s.output_tokens));
    let rate = |n: usize| n as f64 / seconds.max(1e-9);
    BenchReport {
        completed,
        failed,
        first_failure,
        concurrency,
        duration_seconds: seconds,
        prompt_tokens,
        output_tokens,
        requests_per_second: rate(completed),
        prompt_tokens_per_second: rate(prompt_tokens),
        output_tokens_per_second: rate(output_tokens),
        latency_ms: percentiles(samples.iter().map(|s| s.latency)),
        ttft_ms: percentiles(samples.iter().filter_map(|s| s.ttft)),
        tpot_ms: percentiles(samples.iter().filter_map(|s| s.tpot)),
    }
}

/// In milliseconds; `None` of nothing.
fn percentiles(times: impl Iterator<Item = Duration>) -> Option<Percentiles> {
    let mut ms: Vec<f64> = times.map(|t| t.as_secs_f64() * 1e3).collect();
    ms.sort_by(f64::total_cmp);
    let rank = |of_100: usize| ms.get((ms.len() * of_100).div_ceil(100).saturating_sub(1)).copied();
    Some(Percentiles {
        mean: ms.iter().sum::<f64>() / ms.len() as f64,
        p50: rank(50)?,
        p90: rank(90)?,
        p99: rank(99)?,
    })
}

fn stream_one(client: &EndpointClient, body: &Value) -> Result<Sample, String> {
    let (start, mut first, mut last, mut chunks) = (Instant::now(), None, None, 0);
    let (mut usage, mut error) = (Value::Null, None);
    let outcome = client.stream(body, &[("ignore_eos", json!(true))], &mut |data| {
        let Ok(chunk) = serde_json::from_str::<Value>(data) else { return };
        if let Some(message) = chunk["error"]["message"].as_str() {
            error.get_or_insert_with(|| message.to_owned());
        }
        if chunk["usage"].is_object() {
            usage = chunk["usage"].clone();
        }
        if chunk["choices"][0]["text"].as_str().is_some_and(|t| !t.is_empty()) {
            chunks += 1;
            first.get_or_insert_with(Instant::now);
            last = Some(Instant::now());
        }
    });
    outcome.map_err(|e| e.message)?;
    if let Some(message) = error {
        return Err(message);
    }
    let tokens = |field: &str| usage[field].as_u64().map(|n| n as usize);
    let output_tokens = tokens("completion_tokens").unwrap_or(chunks);
    let between = first.zip(last).filter(|_| output_tokens > 1);
    Ok(Sample {
        prompt_tokens: tokens("prompt_tokens").unwrap_or(0),
        output_tokens,
        requests: 1,
        latency: start.elapsed(),
        ttft: first.map(|at: Instant| at - start),
        tpot: between.map(|(first, last)| (last - first) / (output_tokens as u32 - 1)),
    })
}

/// Time that [`glance`] gives each of its two parts.
const GLANCE: Duration = Duration::from_secs(1);

/// How fast an endpoint scores and generates, in a few seconds; the error says what it could not do.
pub fn glance(options: &EndpointOptions, text: &dyn TextCodec) -> Result<ServeSpeed, String> {
    let failed = |report: BenchReport| match report.first_failure.clone() {
        Some(reason) => Err(reason),
        None => Ok(report),
    };
    let scorer = EndpointScorer::connect(options, None).map_err(|e| chain(&e))?;
    let max_len = scorer.max_len().min(SCORED_TOKENS);
    let request = |i: usize| {
        let mut tokens = text.encode(&prompt(i, SCORED_TOKENS), true)?;
        tokens.truncate(max_len);
        Ok(ScoreRequest { tokens, context_len: 1 })
    };
    let requests = (0..64).map(request).collect::<Result<Vec<_>, String>>()?;
    let scored = failed(score(&scorer, &requests, 16, 1, Some(GLANCE)))?;
    let load =
        ServeLoad { requests: 8, concurrency: 2, prompt_words: 12, max_tokens: 16, limit: Some(GLANCE) };
    let generated = failed(serve(options, &load).map_err(|e| chain(&e))?)?;
    let median = |times: Option<Percentiles>| times.map(|t| t.p50).ok_or("no tokens were streamed");
    Ok(ServeSpeed {
        scored_tokens_per_s: scored.prompt_tokens_per_second,
        generated_tokens_per_s: generated.output_tokens_per_second,
        ttft_ms_p50: median(generated.ttft_ms)?,
        tpot_ms_p50: median(generated.tpot_ms)?,
    })
}

/// Words in an order of its own for each number: no two prompts share their beginning.
fn prompt(number: usize, words: usize) -> String {
    const WORDS: [&str; 16] = [
        "time", "river", "house", "green", "walked", "slowly", "under", "seven", "music", "stone", "paper",
        "light", "never", "answer", "garden", "night",
    ];
    let mut state = number as u64;
    let mut text = format!("{number}:");
    for _ in 0..words {
        // Knuth's MMIX generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push(' ');
        text.push_str(WORDS[(state >> 60) as usize]);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::endpoint::stand_in::{Reply, StandIn};
    use super::*;
    use crate::serve::fake::{ByteCodec, FakeEngine};
    use crate::serve::{Server, ServerOptions};

    #[test]
    fn nearest_ranks() {
        let of = |n: u64| percentiles((1..=n).map(Duration::from_millis)).unwrap();
        assert_eq!(of(100), Percentiles { mean: 50.5, p50: 50.0, p90: 90.0, p99: 99.0 });
        assert_eq!(of(1), Percentiles { mean: 1.0, p50: 1.0, p90: 1.0, p99: 1.0 });
        assert!(percentiles(std::iter::empty()).is_none());
    }

    #[test]
    fn counts_what_was_generated() {
        let engine = Arc::new(FakeEngine { max_len: 512, ..FakeEngine::default() });
        let server = Server::start(engine, Arc::new(ByteCodec), ServerOptions::local("fake")).unwrap();
        let load = ServeLoad { requests: 5, concurrency: 2, prompt_words: 3, max_tokens: 9, limit: None };
        let report = serve(&EndpointOptions::new(&server.url()), &load).unwrap();
        assert_eq!((report.completed, report.failed, report.output_tokens), (5, 0, 45));
        assert!(report.ttft_ms.is_some() && report.latency_ms.is_some());

        let too_long = ServeLoad { max_tokens: 5000, ..load };
        let report = serve(&EndpointOptions::new(&server.url()), &too_long).unwrap();
        assert_eq!((report.completed, report.failed), (0, 5));
        assert!(report.first_failure.unwrap().contains("maximum context length"));
    }

    /// A server that refuses the field is asked once with it, and then without.
    #[test]
    fn servers_that_do_not_know_ignore_eos() {
        let server = StandIn::start(|call| {
            if call.path == "/v1/models" {
                return Reply::Json(
                    200,
                    json!({"data": [{"id": "m", "owned_by": "other", "engine": "other 1"}]}),
                );
            }
            if call.body.get("ignore_eos").is_some() {
                return Reply::Json(400, json!({"error": {"message": "unknown field ignore_eos"}}));
            }
            let chunk =
                json!({"choices": [{"text": "a"}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}});
            Reply::Raw(format!(
                "HTTP/1.1 200 x\r\nConnection: close\r\n\r\ndata: {chunk}\n\ndata: [DONE]\n\n"
            ))
        });
        let load = ServeLoad { requests: 4, concurrency: 1, prompt_words: 3, max_tokens: 9, limit: None };
        let report = serve(&EndpointOptions::new(&server.url), &load).unwrap();
        assert_eq!((report.completed, report.failed, report.output_tokens), (4, 0, 4), "{report:?}");
        assert_eq!(server.completions(), 5);
    }

    #[test]
    fn a_glance_takes_no_longer_than_it_may() {
        let slow = FakeEngine { max_len: 512, delay: Duration::from_millis(20), ..FakeEngine::default() };
        let server =
            Server::start(Arc::new(slow), Arc::new(ByteCodec), ServerOptions::local("fake")).unwrap();
        let options = EndpointOptions::new(&server.url());
        let start = Instant::now();
        let speed = glance(&options, &ByteCodec).unwrap();
        assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
        assert!(speed.scored_tokens_per_s > 0.0 && speed.scored_tokens_per_s < 128.0 / 0.02);
        // Every token waits for the engine's 20 ms.
        assert!(speed.tpot_ms_p50 >= 19.0 && speed.ttft_ms_p50 >= 19.0, "{speed:?}");
        assert!(speed.generated_tokens_per_s > 0.0 && speed.generated_tokens_per_s <= 2.0 / 0.02);
    }
}
