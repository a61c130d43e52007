//! `day0 bench`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};

use super::{Settings, output};
use crate::base::env_vars;
use crate::checkpoint::{Checkpoint, source};
use crate::device::cuda::DeviceChoice;
use crate::engine::{Engine, EngineOptions, EnginePlace};
use crate::eval::bench::{self, BenchReport, Percentiles, ServeLoad};
use crate::eval::endpoint::{ApiKey, EndpointOptions, EndpointScorer};
use crate::eval::local::LocalScorer;
use crate::eval::{EvalOptions, Scorer};
use crate::model::tokenizer::Tokenizer;
use crate::ops::kernel_path::ComputeDtype;
use crate::record::score::ScoreRequest;
use crate::record::{Failure, FailureClass};
use crate::release::prepare;
use crate::suite;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Stream completions from an endpoint: throughput, time to the first token, time for each other.
    Serve(Serve),
    /// Score a suite's requests, in this process or over an endpoint.
    Score(Score),
}

#[derive(Debug, Args)]
struct Serve {
    /// OpenAI-compatible endpoint.
    #[arg(long, value_name = "URL")]
    endpoint: String,
    /// File holding the endpoint's API key.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Requests in all.
    #[arg(long, value_name = "N", default_value_t = 64)]
    requests: usize,
    /// Requests at once.
    #[arg(long, value_name = "N", default_value_t = 8)]
    concurrency: usize,
    /// Words of a prompt.
    #[arg(long, value_name = "N", default_value_t = 64)]
    prompt_words: usize,
    /// Tokens generated for each request.
    #[arg(long, value_name = "N", default_value_t = 32)]
    max_tokens: usize,
}

#[derive(Debug, Args)]
struct Score {
    /// Directory, .gguf file, hub id org/name[@revision], or day0-tiny; scored in this process unless there is an
    /// endpoint, which then uses its tokenizer.
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// OpenAI-compatible endpoint with echoed log-probs.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// File holding the endpoint's API key.
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    api_key_file: Option<PathBuf>,
    /// Suites or tasks, comma-separated.
    #[arg(long, value_name = "S")]
    suite: String,
    /// Directory of local evaluation data.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Only the first N items of each task.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// What linear layers multiply; bf16 is faster.
    #[arg(long, value_parser = super::dtype_parser(), default_value = "f32")]
    dtype: ComputeDtype,
    /// Where the built-in engine computes: cpu, auto, cuda or cuda:N,M.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: DeviceChoice,
    /// Requests at once, over an endpoint.
    #[arg(long, value_name = "N", default_value_t = 64)]
    concurrency: usize,
    /// Prompts in one request, over an endpoint.
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch_size: usize,
}

pub(super) fn run(arguments: &Arguments, settings: &Settings) -> Result<u8, Failure> {
    let report = match &arguments.what {
        What::Serve(arguments) => serve(arguments)?,
        What::Score(arguments) => score(arguments, settings)?,
    };
    if settings.json {
        output::json(&report)?;
    } else {
        print(&report);
    }
    match report.first_failure {
        Some(reason) => {
            let message = format!("{} requests failed, the first with: {reason}", report.failed);
            Err(Failure::new(FailureClass::DeploymentHealthFailed, message))
        }
        None => Ok(0),
    }
}

fn serve(arguments: &Serve) -> Result<BenchReport, Failure> {
    let api_key = arguments.api_key_file.as_deref().map(ApiKey::from_file).transpose()?;
    let options = EndpointOptions { api_key, ..EndpointOptions::new(&arguments.endpoint) };
    let load = ServeLoad {
        requests: arguments.requests,
        concurrency: arguments.concurrency,
        prompt_words: arguments.prompt_words,
        max_tokens: arguments.max_tokens,
        limit: None,
    };
    Ok(bench::serve(&options, &load)?)
}

fn score(arguments: &Score, settings: &Settings) -> Result<BenchReport, Failure> {
    let suite = suite::load(&arguments.suite, arguments.data.as_deref())?;
    let model = source::resolve(&arguments.model, &env_vars::cache_dir())?;
    let tokenizer = Tokenizer::load(&model.dir)?;
    let scorer: Box<dyn Scorer> = if let Some(url) = &arguments.endpoint {
        let api_key = arguments.api_key_file.as_deref().map(ApiKey::from_file).transpose()?;
        let batch_size = arguments.batch_size;
        let options = EndpointOptions { api_key, batch_size, ..EndpointOptions::new(url) };
        Box::new(EndpointScorer::connect(&options, None)?)
    } else {
        let checkpoint = Checkpoint::open(&model.dir)?;
        let place = EnginePlace::open(&arguments.device)?;
        let options =
            EngineOptions { dtype: arguments.dtype, ..EngineOptions::at(settings.threads.clone(), &place) };
        let engine = Engine::load_at(&checkpoint, &options, &place)?;
        Box::new(LocalScorer::new(Arc::new(engine)))
    };
    let options = EvalOptions { limit: arguments.limit, ..EvalOptions::new(scorer.max_len()) };
    let tasks = prepare(&suite, &tokenizer, &options)?;
    let items = tasks.iter().flat_map(|t| &t.items).flat_map(|i| &i.requests);
    let requests: Vec<ScoreRequest> = items.flat_map(|r| r.windows.clone()).collect();
    // The engine orders and batches by itself, in parts of some seconds: all requests are one call.
    let (batch_size, concurrency) = match arguments.endpoint {
        Some(_) => (arguments.batch_size, arguments.concurrency),
        None => (requests.len(), 1),
    };
    Ok(bench::score(&*scorer, &requests, batch_size, concurrency, None))
}

fn print(report: &BenchReport) {
    output::line(&format!(
        "{} requests, {} failed, {} at once, {:.2} s",
        report.completed, report.failed, report.concurrency, report.duration_seconds
    ));
    output::line(&format!(
        "{:.2} requests/s, {:.1} prompt tokens/s, {:.1} output tokens/s",
        report.requests_per_second, report.prompt_tokens_per_second, report.output_tokens_per_second
    ));
    output::line(&format!("{:<12} {:>10} {:>10} {:>10} {:>10}", "ms", "mean", "p50", "p90", "p99"));
    let rows = [("latency", report.latency_ms), ("ttft", report.ttft_ms), ("tpot", report.tpot_ms)];
    for (name, percentiles) in rows {
        let Some(Percentiles { mean, p50, p90, p99 }) = percentiles else { continue };
        output::line(&format!("{name:<12} {mean:>10.1} {p50:>10.1} {p90:>10.1} {p99:>10.1}"));
    }
}
