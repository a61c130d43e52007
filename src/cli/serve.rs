//! `day0 serve`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::{Settings, output};
use crate::base::{env_vars, interrupt, progress};
use crate::checkpoint::{Checkpoint, source};
use crate::engine::{Engine, EngineOptions};
use crate::model::tokenizer::Tokenizer;
use crate::record::Failure;
use crate::serve::{Server, ServerOptions};

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
    /// File holding the API key that clients must send.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
}

pub(super) fn run(arguments: Arguments, settings: &Settings) -> Result<u8, Failure> {
    let api_key = super::read_api_key(arguments.api_key_file.as_deref())?;
    let model = source::resolve(&arguments.model, &env_vars::cache_dir())?;
    let checkpoint = Checkpoint::open(&model.dir)?;
    let tokenizer = Arc::new(Tokenizer::load(&model.dir)?);
    let engine = Engine::load(&checkpoint, &EngineOptions::new(settings.threads.clone()))?
        .with_tokenizer_digest(tokenizer.digest().clone());
    let options = ServerOptions {
        host: arguments.host,
        port: arguments.port,
        api_key,
        root: model.dir.display().to_string(),
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
