//! One arm of the comparison: an engine that serves one checkpoint, started once and torn down.
//!
//! The built-in engine is started by the program itself: it is put behind the HTTP server, probed over HTTP like any
//! other, and scored in process; the probe's fingerprint shows that both give the same numbers. An engine that is started
//! from a command and a declared endpoint are probed and scored over HTTP.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::launch::{EngineCommand, Launched};
use crate::base::digest::Digest;
use crate::base::threads::Threads;
use crate::base::{interrupt, progress};
use crate::checkpoint::Checkpoint;
use crate::engine::{Engine, EngineOptions, EnginePlace};
use crate::eval::endpoint::{ApiKey, EndpointOptions, EndpointScorer};
use crate::eval::local::LocalScorer;
use crate::eval::probe::{self, ProbeTarget};
use crate::eval::{ScoreError, Scorer, bench};
use crate::exec::Owner;
use crate::exec::triage::Triage;
use crate::model::tokenizer::Tokenizer;
use crate::ops::kernel_path::ComputeDtype;
use crate::record::serve::{EngineProcess, ProbeResult, ServeRecord, ServeSpeed};
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
        /// Where it computes.
        place: EnginePlace,
    },
    /// By an engine that day0 starts from a command.
    Command(EngineCommand),
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
/// How often an engine that has ended by itself is started again.
const RESTARTS: u32 = 1;

/// One arm.
pub struct Arm {
    name: ArmName,
    /// Directory of the checkpoint it must serve.
    checkpoint: PathBuf,
    engine: ArmEngine,
    threads: Threads,
    /// Command that reproduces the start.
    command: String,
    /// Log of an engine that is started from a command.
    log: PathBuf,
    /// How often such an engine was started again after it had been up.
    restarts: AtomicU32,
    running: Mutex<Option<Arc<Running>>>,
}

/// A started arm.
pub struct Running {
    options: EndpointOptions,
    tokenizer: Arc<Tokenizer>,
    expected_digest: Digest,
    /// The built-in engine's scorer.
    local: Option<Arc<LocalScorer>>,
    /// An endpoint's scorer, once the first wave has needed it.
    remote: Mutex<Option<Arc<dyn Scorer>>>,
    server: Option<ServerHandle>,
    launched: Option<Mutex<Launched>>,
    /// Whether a launched engine has been healthy since it was started.
    was_up: AtomicBool,
}

impl Running {
    fn new(options: EndpointOptions, tokenizer: Arc<Tokenizer>, expected_digest: Digest) -> Self {
        Self {
            options,
            tokenizer,
            expected_digest,
            local: None,
            remote: Mutex::default(),
            server: None,
            launched: None,
            was_up: AtomicBool::new(false),
        }
    }

    /// Why the engine is not there any more, with the end of its log; `None` while it is, or is not ours to know.
    fn why_gone(&self) -> Option<(Triage, String)> {
        let launched = self.launched.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        Some((launched.why_gone()?, launched.excerpt()))
    }

    /// Gives the end of a process the time to be noticed: its connections may break before.
    fn settle(&self) {
        if let Some(launched) = &self.launched {
            launched.lock().unwrap_or_else(PoisonError::into_inner).settle();
        }
    }

    fn stop(&self) {
        if let Some(server) = &self.server {
            server.shutdown();
        }
        if let Some(launched) = &self.launched {
            launched.lock().unwrap_or_else(PoisonError::into_inner).stop();
        }
    }
}

impl Arm {
    /// An arm that is not started. A launched engine's output goes to `log`.
    pub fn new(
        name: ArmName,
        checkpoint: PathBuf,
        engine: ArmEngine,
        threads: Threads,
        log: PathBuf,
    ) -> Self {
        let command = match &engine {
            ArmEngine::Local { dtype, place } => {
                let dtype = (*dtype == ComputeDtype::Bf16).then(|| "--dtype bf16".to_owned());
                let words = [Some("day0 serve".to_owned()), dtype, place.flag()];
                let words = words.into_iter().flatten().chain([checkpoint.display().to_string()]);
                words.collect::<Vec<_>>().join(" ")
            }
            ArmEngine::Command(spec) => spec.command.clone(),
            ArmEngine::Endpoint { url, .. } => format!("curl {url}/health"),
        };
        let restarts = AtomicU32::new(0);
        Self { name, checkpoint, engine, threads, command, log, restarts, running: Mutex::new(None) }
    }

    /// What answers score requests; starts the arm if it is not running. An endpoint is watched from `opening` on, which
    /// may be the work of an earlier process: it must still be the engine that was probed then.
    pub fn scorer(&self, opening: &ServeRecord) -> Result<Arc<dyn Scorer>, Failure> {
        let running = self.ready()?;
        if let Some(scorer) = &running.local {
            return Ok(Arc::<LocalScorer>::clone(scorer));
        }
        let mut slot = running.remote.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scorer) = &*slot {
            return Ok(Arc::clone(scorer));
        }
        let scorer = EndpointScorer::connect(&running.options, opening.identity.clone())?
            .watching(probe::fingerprint_prompts(&*running.tokenizer), opening.fingerprint.clone())?;
        if running.launched.is_some() {
            // It may be another process than the one that was probed: of a task beside this one, or before a crash.
            scorer.confirm().map_err(ScoreError::Engine)?;
        }
        Ok(Arc::clone(slot.insert(Arc::new(scorer))))
    }

    /// The started arm, able to answer. A launched engine may be another process than the one that was probed, of a task
    /// beside this one or before an interruption: then it is waited for here.
    fn ready(&self) -> Result<Arc<Running>, Failure> {
        let running = self.start()?;
        self.await_health(&running)?;
        match running.why_gone() {
            Some((why, excerpt)) => self.restart(&why, &excerpt),
            None => Ok(running),
        }
    }

    /// Waits until a launched engine has been healthy once, or has ended, which the caller asks next.
    fn await_health(&self, running: &Running) -> Result<(), Failure> {
        if running.launched.is_none() || running.was_up.load(Ordering::Relaxed) {
            return Ok(());
        }
        let health = probe::wait(&running.options, self.startup_timeout());
        running.was_up.store(health.ok, Ordering::Relaxed);
        if health.ok {
            return Ok(());
        }
        if let Some(signal) = interrupt::received() {
            return Err(Failure::interrupted(signal));
        }
        if running.why_gone().is_some() {
            return Ok(());
        }
        let message = format!("{} arm: the engine is not healthy: {}", self.name, health.detail);
        let hint = format!("reproduce with `{}`; the log: {}", self.command, self.log.display());
        Err(Failure::new(FailureClass::DeploymentHealthFailed, message).with_hint(hint))
    }

    /// Starts an engine again that has ended by itself; once.
    fn restart(&self, why: &Triage, excerpt: &str) -> Result<Arc<Running>, Failure> {
        if self.restarts.fetch_add(1, Ordering::Relaxed) >= RESTARTS {
            return Err(self.crashed(why, excerpt));
        }
        progress::note(&format!("{} arm: the engine ended ({}); starting it again", self.name, why.what));
        self.stop();
        let running = self.start()?;
        self.await_health(&running)?;
        match running.why_gone() {
            Some((why, excerpt)) => Err(self.crashed(&why, &excerpt)),
            None => Ok(running),
        }
    }

    fn crashed(&self, why: &Triage, excerpt: &str) -> Failure {
        let message = format!(
            "{} arm: the engine ended again after {RESTARTS} restart ({}); its log ends: {excerpt}",
            self.name, why.what
        );
        Failure::new(FailureClass::DeploymentHealthFailed, message).with_hint(format!(
            "{}; reproduce with `{}`; the log: {}",
            why.hint,
            self.command,
            self.log.display()
        ))
    }

    /// What a failure means, knowing the engine's process: one that has ended twice is no transient fault.
    pub fn diagnose(&self, failure: Failure) -> Failure {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let settled = running.inspect(|running| running.settle());
        let Some((why, excerpt)) = settled.and_then(|r| r.why_gone()) else { return failure };
        if self.restarts.load(Ordering::Relaxed) >= RESTARTS {
            return self.crashed(&why, &excerpt);
        }
        let message = format!(
            "{} arm: the engine ended while scoring ({}); its log ends: {excerpt}",
            self.name, why.what
        );
        Failure::new(FailureClass::InfraTransient, message).with_hint(why.hint)
    }

    fn startup_timeout(&self) -> Duration {
        match &self.engine {
            ArmEngine::Command(spec) => Duration::from_secs(spec.startup_seconds),
            _ => STARTUP_TIMEOUT,
        }
    }

    /// What answers score requests, one prompt at a time.
    pub fn one_by_one(&self, opening: &ServeRecord) -> Result<Arc<dyn Scorer>, Failure> {
        let running = self.ready()?;
        if let Some(scorer) = &running.local {
            return Ok(Arc::new(scorer.one_by_one()));
        }
        let options = EndpointOptions { batch_size: 1, concurrency: 1, ..running.options.clone() };
        Ok(Arc::new(EndpointScorer::connect(&options, opening.identity.clone())?))
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
                Running::new(options, tokenizer, expected_digest)
            }
            ArmEngine::Command(spec) => {
                let launched = Launched::start(spec, self.name.as_str(), &self.checkpoint, &self.log)?;
                let gone = Some(launched.gone.clone());
                let device = Some(crate::device::name());
                let options = EndpointOptions { gone, device, ..EndpointOptions::new(&launched.url) };
                let launched = Some(Mutex::new(launched));
                Running { launched, ..Running::new(options, tokenizer, expected_digest) }
            }
            ArmEngine::Local { dtype, place } => {
                let options =
                    EngineOptions { dtype: *dtype, ..EngineOptions::at(self.threads.clone(), place) };
                let engine = Engine::load_at(&checkpoint, &options, place)?
                    .with_tokenizer_digest(tokenizer.digest().clone());
                let engine = Arc::new(engine);
                let options = ServerOptions::local(&self.name.to_string());
                let server = Server::start(engine.clone(), tokenizer.clone(), options)?;
                let options = EndpointOptions::new(&server.url());
                let local = Some(Arc::new(LocalScorer::new(engine)));
                let server = Some(server);
                Running { local, server, ..Running::new(options, tokenizer, expected_digest) }
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
        if let Some(running) = running {
            running.stop();
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
                    let mut record = probe::probe(&self.target(&running, attempts, provenance));
                    running.was_up.store(record.health.ok, Ordering::Relaxed);
                    // What was cut short says nothing about the engine.
                    if let Some(signal) = interrupt::received().filter(|_| !record.health.ok) {
                        return Err(Failure::interrupted(signal));
                    }
                    self.describe_process(&running, &mut record);
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
        let running = self.ready().ok()?;
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
        let running = self.ready()?;
        let mut record = opening.clone();
        probe::still_up(&self.target(&running, opening.attempts, provenance), &mut record);
        self.describe_process(&running, &mut record);
        Ok(record)
    }

    /// Writes the process of a launched engine into the record, and why it is not healthy.
    fn describe_process(&self, running: &Running, record: &mut ServeRecord) {
        let Some(launched) = &running.launched else { return };
        let launched = launched.lock().unwrap_or_else(PoisonError::into_inner);
        record.command.clone_from(&launched.command);
        record.process = Some(EngineProcess {
            host: Owner::current().place().to_owned(),
            pid: launched.pid,
            restarts: self.restarts.load(Ordering::Relaxed),
            log: launched.log.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        });
        let probes = [Some(&mut record.health), record.stayed_up.as_mut()];
        for probe in probes.into_iter().flatten().filter(|probe| !probe.ok) {
            if let Some(why) = launched.why_gone() {
                let said = if why.excerpt.is_empty() { String::new() } else { format!(": {}", why.excerpt) };
                probe.detail = format!("the engine ended ({}{said}); {}", why.what, why.hint);
            }
            record.log_excerpt = launched.excerpt();
        }
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
            launched: running.server.is_some() || running.launched.is_some(),
            directory: running.launched.as_ref().map(|_| self.checkpoint.as_path()),
            attempts,
            command: self.command.clone(),
            startup_timeout: self.startup_timeout(),
            expected_digest: Some(&running.expected_digest),
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
                ArmEngine::Local { .. } | ArmEngine::Command(_) => String::new(),
                ArmEngine::Endpoint { url, .. } => url.clone(),
            },
            launched: !matches!(self.engine, ArmEngine::Endpoint { .. }),
            attempts,
            health: ProbeResult { ok: false, status: None, detail: failure.message.clone() },
            expected_digest: None,
            identity: None,
            canary: None,
            self_test: None,
            fingerprint: None,
            stayed_up: None,
            speed: None,
            contradiction: None,
            process: None,
            log_excerpt: failure.message.clone(),
            command: self.command.clone(),
            provenance: provenance.clone(),
        }
    }
}
