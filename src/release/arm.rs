//! One arm of the comparison: an engine that serves one checkpoint, started once and torn down.
//!
//! The built-in engine is started by the program itself: it is put behind the HTTP server, probed over HTTP like any
//! other, and scored in process; the probe's fingerprint shows that both give the same numbers. A declared endpoint is
//! probed and scored over HTTP.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::base::digest::Digest;
use crate::base::progress;
use crate::base::threads::Threads;
use crate::checkpoint::Checkpoint;
use crate::engine::{Engine, EngineOptions};
use crate::eval::endpoint::{ApiKey, EndpointOptions, EndpointScorer};
use crate::eval::local::LocalScorer;
use crate::eval::probe::{self, ProbeTarget};
use crate::eval::{Scorer, bench};
use crate::model::tokenizer::Tokenizer;
use crate::ops::kernel_path::ComputeDtype;
use crate::record::serve::{ProbeResult, ServeRecord, ServeSpeed};
use crate::record::{Failure, FailureClass, Provenance};
use crate::serve::{Server, ServerHandle, ServerOptions};

/// Which arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ArmName {
    /// The original model.
    Baseline,
    /// The quantized checkpoint.
    Candidate,
}

impl fmt::Display for ArmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl ArmName {
    /// Both arms, baseline first.
    pub const BOTH: [Self; 2] = [Self::Baseline, Self::Candidate];

    /// The name in records and paths.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Candidate => "candidate",
        }
    }

    /// Name of the stage that starts this arm.
    pub fn serve_stage(self) -> &'static str {
        match self {
            Self::Baseline => "serve baseline",
            Self::Candidate => "serve candidate",
        }
    }

    /// Name of the stage that evaluates this arm.
    pub fn eval_stage(self) -> &'static str {
        match self {
            Self::Baseline => "eval baseline",
            Self::Candidate => "eval candidate",
        }
    }
}

/// How an arm is served.
#[derive(Debug, Clone)]
pub enum ArmEngine {
    /// By the built-in engine.
    Local {
        /// What its linear layers multiply.
        dtype: ComputeDtype,
    },
    /// By an endpoint that somebody else started.
    Endpoint {
        /// Base URL.
        url: String,
        /// Bearer token.
        api_key: Option<ApiKey>,
    },
}

/// How long an engine may take to become healthy.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Start attempts before an engine counts as failed.
const ATTEMPTS: u32 = 2;

/// One arm.
pub struct Arm {
    name: ArmName,
    /// Directory of the checkpoint it must serve.
    checkpoint: PathBuf,
    engine: ArmEngine,
    threads: Threads,
    /// Command that reproduces the start.
    command: String,
    running: Mutex<Option<Arc<Running>>>,
}

/// A started arm.
pub struct Running {
    options: EndpointOptions,
    tokenizer: Arc<Tokenizer>,
    expected_digest: Digest,
    /// The built-in engine's scorer.
    local: Option<Arc<dyn Scorer>>,
    /// An endpoint's scorer, once the first wave has needed it.
    remote: Mutex<Option<Arc<dyn Scorer>>>,
    server: Option<ServerHandle>,
}

impl Arm {
    /// An arm that is not started.
    pub fn new(name: ArmName, checkpoint: PathBuf, engine: ArmEngine, threads: Threads) -> Self {
        let command = match &engine {
            ArmEngine::Local { dtype: ComputeDtype::F32 } => format!("day0 serve {}", checkpoint.display()),
            ArmEngine::Local { dtype: ComputeDtype::Bf16 } => {
                format!("day0 serve --dtype bf16 {}", checkpoint.display())
            }
            ArmEngine::Endpoint { url, .. } => format!("curl {url}/health"),
        };
        Self { name, checkpoint, engine, threads, command, running: Mutex::new(None) }
    }

    /// What answers score requests; starts the arm if it is not running. An endpoint is watched from `opening` on, which
    /// may be the work of an earlier process: it must still be the engine that was probed then.
    pub fn scorer(&self, opening: &ServeRecord) -> Result<Arc<dyn Scorer>, Failure> {
        let running = self.start()?;
        if let Some(scorer) = &running.local {
            return Ok(Arc::clone(scorer));
        }
        let mut slot = running.remote.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scorer) = &*slot {
            return Ok(Arc::clone(scorer));
        }
        let scorer = EndpointScorer::connect(&running.options, opening.identity.clone())?
            .watching(probe::fingerprint_prompts(&*running.tokenizer), opening.fingerprint.clone())?;
        Ok(Arc::clone(slot.insert(Arc::new(scorer))))
    }

    /// What answers score requests of a running endpoint, one prompt at a time; `None` of the built-in engine, whose
    /// numbers do not depend on what it is asked together.
    pub fn one_by_one(&self, opening: &ServeRecord) -> Result<Option<EndpointScorer>, Failure> {
        let running = self.start()?;
        if running.local.is_some() {
            return Ok(None);
        }
        let options = EndpointOptions { batch_size: 1, concurrency: 1, ..running.options.clone() };
        Ok(Some(EndpointScorer::connect(&options, opening.identity.clone())?))
    }

    /// Starts the arm, or returns the started one.
    fn start(&self) -> Result<Arc<Running>, Failure> {
        let mut slot = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &*slot {
            return Ok(Arc::clone(running));
        }
        let checkpoint = Checkpoint::open(&self.checkpoint)?;
        let expected_digest = checkpoint.digest()?;
        let tokenizer = Arc::new(Tokenizer::load(&self.checkpoint)?);
        let running = match &self.engine {
            ArmEngine::Endpoint { url, api_key } => {
                let options = EndpointOptions { api_key: api_key.clone(), ..EndpointOptions::new(url) };
                Running {
                    options,
                    tokenizer,
                    expected_digest,
                    local: None,
                    remote: Mutex::default(),
                    server: None,
                }
            }
            ArmEngine::Local { dtype } => {
                let options = EngineOptions { dtype: *dtype, ..EngineOptions::new(self.threads.clone()) };
                let engine =
                    Engine::load(&checkpoint, &options)?.with_tokenizer_digest(tokenizer.digest().clone());
                let engine = Arc::new(engine);
                let options = ServerOptions::local(&self.name.to_string());
                let server = Server::start(engine.clone(), tokenizer.clone(), options)?;
                let options = EndpointOptions::new(&server.url());
                let local: Option<Arc<dyn Scorer>> = Some(Arc::new(LocalScorer::new(engine)));
                Running {
                    options,
                    tokenizer,
                    expected_digest,
                    local,
                    remote: Mutex::default(),
                    server: Some(server),
                }
            }
        };
        let running = Arc::new(running);
        *slot = Some(Arc::clone(&running));
        Ok(running)
    }

    /// Whether the arm was started in this process and not stopped since.
    pub fn is_running(&self) -> bool {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Stops the arm's server, if it was started.
    pub fn stop(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(server) = running.as_ref().and_then(|r| r.server.as_ref()) {
            server.shutdown();
        }
    }

    /// Starts the arm (once more after a failure) and probes it. An engine that does not come up is a record, not an
    /// error: the gate decides about it.
    pub fn probe(&self, provenance: &Provenance) -> Result<ServeRecord, Failure> {
        let mut attempts = 1;
        loop {
            let last = attempts == ATTEMPTS;
            match self.start() {
                Ok(running) => {
                    let record = probe::probe(&self.target(&running, attempts, provenance));
                    if record.health.ok || last {
                        return Ok(record);
                    }
                    self.stop();
                }
                // What cannot work is not the engine's health, and is not tried again.
                Err(failure) if failure.class != FailureClass::DeploymentHealthFailed => return Err(failure),
                Err(failure) if last => return Ok(self.failed_start(&failure, attempts, provenance)),
                Err(_) => {}
            }
            attempts += 1;
        }
    }

    /// How fast the running arm is, if that can be measured: the report says so, no gate does.
    pub fn speed(&self) -> Option<ServeSpeed> {
        let running = self.start().ok()?;
        let measured = bench::glance(&running.options, &*running.tokenizer);
        let unknown =
            |reason: String| progress::note(&format!("{} arm: speed not measured: {reason}", self.name));
        measured.map_err(unknown).ok()
    }

    /// Probes a running arm again after its last request.
    pub fn probe_again(
        &self,
        opening: &ServeRecord,
        provenance: &Provenance,
    ) -> Result<ServeRecord, Failure> {
        let running = self.start()?;
        let mut record = opening.clone();
        probe::still_up(&self.target(&running, opening.attempts, provenance), &mut record);
        Ok(record)
    }

    fn target<'a>(
        &'a self,
        running: &'a Running,
        attempts: u32,
        provenance: &'a Provenance,
    ) -> ProbeTarget<'a> {
        ProbeTarget {
            arm: self.name.as_str(),
            options: &running.options,
            launched: running.server.is_some(),
            attempts,
            command: self.command.clone(),
            startup_timeout: STARTUP_TIMEOUT,
            expected_digest: &running.expected_digest,
            text: &*running.tokenizer,
            tokenizer_digest: Some(running.tokenizer.digest()),
            provenance,
        }
    }

    fn failed_start(&self, failure: &Failure, attempts: u32, provenance: &Provenance) -> ServeRecord {
        ServeRecord {
            schema_version: crate::record::SCHEMA_VERSION,
            arm: self.name.to_string(),
            url: match &self.engine {
                ArmEngine::Local { .. } => String::new(),
                ArmEngine::Endpoint { url, .. } => url.clone(),
            },
            launched: matches!(self.engine, ArmEngine::Local { .. }),
            attempts,
            health: ProbeResult { ok: false, status: None, detail: failure.message.clone() },
            expected_digest: Digest::of(b""),
            identity: None,
            canary: None,
            self_test: None,
            fingerprint: None,
            stayed_up: None,
            speed: None,
            log_excerpt: failure.message.clone(),
            command: self.command.clone(),
            provenance: provenance.clone(),
        }
    }
}
