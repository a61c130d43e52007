//! `day0 serve`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::{Settings, output};
use crate::base::{env_vars, interrupt, progress};
use crate::checkpoint::{Checkpoint, source};
use crate::device::cuda::DeviceChoice;
use crate::engine::{Engine, EngineOptions, EnginePlace, GeneratorOptions};
use crate::model::tokenizer::Tokenizer;
use crate::ops::kernel_path::ComputeDtype;
use crate::record::Failure;
use crate::serve::{Server, ServerOptions};

/// Tokens of a pass at least: what many clients ask for at once is one pass, where the engine's own size would leave a
/// small rest to a second, which reads all weights again.
const SERVED_BATCHED_TOKENS: usize = 2048;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Directory, .gguf file, hub id org/name[@revision], or day0-tiny.
    model: String,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// File with the API keys that clients may send, one a line [default: the keys in DAY0_API_KEY].
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Tokens of the longest sequence, prompt and generated together [default: what the model takes].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_model_len: Option<u32>,
    /// Memory for the keys and values of running sequences; at least one of full length always fits.
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    kv_cache_mib: u32,
    /// New tokens of one forward pass [default: 2048, on GPUs 16384].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_num_batched_tokens: Option<u32>,
    /// Requests in flight, queued ones included; more get 503.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..1_000_000))]
    max_requests: u32,
    /// Requests in flight of one client; more get 429 [default: no limit].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_requests_per_client: Option<u32>,
    /// A request that is not answered by then gets 503.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    request_timeout: u32,
    /// How long a shutdown waits for requests in flight.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain_timeout: u32,
    /// What linear layers multiply; bf16 is faster.
    #[arg(long, value_parser = super::dtype_parser(), default_value = "f32")]
    dtype: ComputeDtype,
    /// Where the built-in engine computes: cpu, auto, cuda or cuda:N,M.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: DeviceChoice,
    /// Origin whose pages may read answers; may be given several times, * means all.
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
}

pub(super) fn run(arguments: Arguments, settings: &Settings) -> Result<u8, Failure> {
    let api_keys = api_keys(arguments.api_key_file.as_deref())?;
    let model = source::resolve(&arguments.model, &env_vars::cache_dir())?;
    let checkpoint = Checkpoint::open(&model.dir)?;
    let tokenizer = Arc::new(Tokenizer::load(&model.dir)?);
    let place = EnginePlace::open(&arguments.device)?;
    let mut options =
        EngineOptions { dtype: arguments.dtype, ..EngineOptions::at(settings.threads.clone(), &place) };
    options.max_batched_tokens = arguments
        .max_num_batched_tokens
        .map_or(options.max_batched_tokens.max(SERVED_BATCHED_TOKENS), |n| n as usize);
    let engine =
        Engine::load_at(&checkpoint, &options, &place)?.with_tokenizer_digest(tokenizer.digest().clone());
    let generation = generation(&arguments, engine.max_len())?;
    let options = ServerOptions {
        generation,
        host: arguments.host,
        port: arguments.port,
        api_keys,
        root: model.dir.display().to_string(),
        max_queued_requests: arguments.max_requests as usize,
        max_requests_per_client: arguments.max_requests_per_client.map(|n| n as usize),
        request_timeout: Duration::from_secs(u64::from(arguments.request_timeout)),
        drain_timeout: Duration::from_secs(u64::from(arguments.drain_timeout)),
        cors_origins: arguments.cors_origin,
        ..ServerOptions::local(&model.name)
    };
    interrupt::install().map_err(|e| Failure::io("signal handlers", &e))?;
    let server = Server::start(Arc::new(engine), tokenizer, options)?;
    // The address is the data of this command: a script reads it to know the port.
    output::line(&server.url());
    progress::note("serving; Ctrl-C stops");
    server.wait();
    Ok(0)
}

/// How long sequences may be, and how much memory they have.
fn generation(arguments: &Arguments, longest: usize) -> Result<GeneratorOptions, Failure> {
    let max_len = arguments.max_model_len.map(|n| n as usize);
    match max_len.filter(|n| *n > longest) {
        Some(n) => Err(Failure::config(format!("--max-model-len {n}: the model takes {longest} tokens"))),
        None => Ok(GeneratorOptions {
            kv_cache_bytes: (arguments.kv_cache_mib as usize) << 20,
            max_len,
            ..GeneratorOptions::default()
        }),
    }
}

/// The keys of a file or of the environment, one a line.
fn api_keys(file: Option<&Path>) -> Result<Vec<String>, Failure> {
    let text = match file {
        Some(path) => Some(std::fs::read_to_string(path).map_err(|e| Failure::io(path.display(), &e))?),
        None => env_vars::get(env_vars::DAY0_API_KEY),
    };
    let lines = text.as_deref().unwrap_or_default().lines();
    let keys: Vec<String> = lines.map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect();
    match file.filter(|_| keys.is_empty()) {
        // A server meant to be closed must not be open.
        Some(path) => {
            Err(Failure::config(format!("{}: no API key in it, expected one a line", path.display())))
        }
        None => Ok(keys),
    }
}
