//! Engines that day0 starts from a command template: vLLM, SGLang, or anything that speaks their API.
//!
//! The command runs in a process group of its own, which is ended as a whole, also when this process is killed: the
//! group is led by a watchdog that reads from a pipe of this process. The kernel closes the pipe however the process
//! ends, and then the watchdog ends the group, itself included. It is there before the engine and is reaped after it, so
//! that the group's id is never another's.

use std::fs::File;
use std::io::{self, PipeWriter};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::slurm::tail;
use crate::base::closest::suggestion;
use crate::eval::endpoint::Gone;
use crate::exec::slurm::quote;
use crate::exec::triage::{Ended, Triage, classify};
use crate::record::Failure;

/// What may stand in a template.
const PLACEHOLDERS: [&str; 5] = ["model", "port", "host", "name", "arm"];
/// What must.
const REQUIRED: [&str; 2] = ["model", "port"];
/// How long the end of a process may take to be noticed after its connections broke.
const SETTLE: Duration = Duration::from_secs(1);
/// Bytes at the end of the log that triage looks at, and lines of an excerpt.
const LOG_BYTES: u64 = 64 << 10;
const EXCERPT_LINES: usize = 12;

/// `serve.engine` of `day0.yaml`, valid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineCommand {
    /// Command with `{model}` (the checkpoint's directory), `{port}`, `{host}`, `{name}` (what to call the model) and
    /// `{arm}` (baseline or candidate). bash runs it.
    pub command: String,
    /// How long it may take to become healthy, in seconds.
    pub startup_seconds: u64,
    /// How long it may take to end after SIGTERM, in seconds; then it is killed.
    pub stop_seconds: u64,
    /// Whether both arms' engines fit beside each other; otherwise the baseline is done before the candidate starts.
    pub both_at_once: bool,
}

impl EngineCommand {
    /// Refuses templates that lack what is needed or hold what nobody fills in.
    pub fn check(&self) -> Result<(), Failure> {
        let found = placeholders(&self.command);
        if let Some(unknown) = found.iter().find(|name| !PLACEHOLDERS.contains(name)) {
            return Err(Failure::config(format!("serve.engine.command: {{{unknown}}} is not known"))
                .with_hint(suggestion(unknown, &PLACEHOLDERS)));
        }
        if let Some(missing) = REQUIRED.iter().find(|name| !found.contains(name)) {
            return Err(Failure::config(format!("serve.engine.command: {{{missing}}} is missing"))
                .with_hint("for example: vllm serve {model} --port {port} --served-model-name {name}"));
        }
        if self.startup_seconds == 0 {
            return Err(Failure::config("serve.engine.startup_seconds: 0 is not enough"));
        }
        Ok(())
    }

    fn filled(&self, arm: &str, model: &Path, port: u16) -> String {
        let values = [
            ("{model}", quote(&model.display().to_string())),
            ("{port}", port.to_string()),
            ("{host}", HOST.to_owned()),
            ("{name}", arm.to_owned()),
            ("{arm}", arm.to_owned()),
        ];
        values.iter().fold(self.command.clone(), |text, (name, value)| text.replace(name, value))
    }
}

const HOST: &str = "127.0.0.1";

/// Words in braces. JSON in a flag has quotes in its braces and is none.
fn placeholders(command: &str) -> Vec<&str> {
    let name = |rest: &str| rest.find('}').filter(|end| *end > 0);
    let mut found = Vec::new();
    for (at, _) in command.match_indices('{') {
        let rest = &command[at + 1..];
        if let Some(end) = name(rest)
            && rest[..end].chars().all(|c| c.is_ascii_lowercase() || c == '_')
        {
            found.push(&rest[..end]);
        }
    }
    found
}

/// A running engine.
pub struct Launched {
    /// Its address.
    pub url: String,
    /// The command that was run.
    pub command: String,
    /// Its log.
    pub log: PathBuf,
    /// Its process.
    pub pid: u32,
    /// Told when it ends.
    pub gone: Gone,
    /// Its process group.
    group: u32,
    stop_timeout: Duration,
    status: Arc<Status>,
    supervisor: Option<JoinHandle<()>>,
}

/// How the engine ended, once it has.
#[derive(Default)]
struct Status {
    ended: Mutex<Option<ExitStatus>>,
    changed: Condvar,
}

impl Status {
    fn ended(&self) -> Option<ExitStatus> {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits at most this long; whether it has ended.
    fn wait(&self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        while ended.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            ended = self.changed.wait_timeout(ended, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Launched {
    /// Starts the engine for the checkpoint `model`. Its output is appended to `log`.
    pub fn start(spec: &EngineCommand, arm: &str, model: &Path, log: &Path) -> Result<Self, Failure> {
        let port = free_port().map_err(|e| Failure::io("a free port", &e))?;
        let model = std::path::absolute(model).map_err(|e| Failure::io(model.display(), &e))?;
        let command = spec.filled(arm, &model, port);
        let output = log_file(log).map_err(|e| Failure::io(log.display(), &e))?;
        let (gone, status) = (Gone::default(), Arc::new(Status::default()));
        let processes =
            Processes::start(&command, output, spec.stop_seconds).map_err(|e| Failure::io("bash", &e))?;
        let (pid, group) = (processes.engine.id(), processes.watchdog.id());
        let supervisor = {
            let (gone, status) = (gone.clone(), Arc::clone(&status));
            std::thread::spawn(move || processes.supervise(&gone, &status))
        };
        Ok(Self {
            url: format!("http://{HOST}:{port}"),
            command,
            log: log.to_path_buf(),
            pid,
            gone,
            group,
            stop_timeout: Duration::from_secs(spec.stop_seconds),
            status,
            supervisor: Some(supervisor),
        })
    }

    /// Waits a moment for the end of a process whose connections broke.
    pub fn settle(&self) {
        self.status.wait(SETTLE);
    }

    /// Why it is not there any more; `None` while it is.
    pub fn why_gone(&self) -> Option<Triage> {
        if self.gone.is_set() {
            // That it ended is told before it is known how.
            self.settle();
        }
        let ended = self.status.ended()?;
        let log = tail(&self.log, LOG_BYTES);
        let exit_code = ended.code().and_then(|code| u8::try_from(code).ok());
        Some(classify(&Ended { exit_code, signal: ended.signal(), slurm_state: None, log: &log }))
    }

    /// The last lines of its log.
    pub fn excerpt(&self) -> String {
        let log = tail(&self.log, LOG_BYTES);
        let lines: Vec<&str> = log.lines().filter(|l| !l.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(EXCERPT_LINES)..].join("\n")
    }

    /// Ends its whole process group.
    pub fn stop(&mut self) {
        self.signal(libc::SIGTERM);
        if !self.status.wait(self.stop_timeout) {
            self.signal(libc::SIGKILL);
        }
        if let Some(supervisor) = self.supervisor.take() {
            // The thread ends with the process; a panic in it would leave nothing to do here.
            let _ = supervisor.join();
        }
    }

    fn signal(&self, signal: i32) {
        let ended = self.status.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.is_none() {
            // SAFETY: sends a signal to the engine's group. Its leader is reaped only under this lock, so its id cannot
            // have been given to another group.
            unsafe { libc::kill(-(self.group as i32), signal) };
        }
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if self.supervisor.is_some() {
            self.stop();
        }
    }
}

/// The processes of a running engine.
struct Processes {
    engine: Child,
    watchdog: Child,
    /// Open as long as this process lives; no child inherits it.
    alive: PipeWriter,
}

impl Processes {
    fn start(command: &str, output: (File, File), stop_seconds: u64) -> io::Result<Self> {
        let (read_end, alive) = io::pipe()?;
        // It gets the signals that it sends to its group, and those that are meant for the engine.
        let watch =
            format!("trap '' HUP INT TERM; read -r line; kill -TERM 0; sleep {stop_seconds}; kill -KILL 0");
        let mut watchdog = Command::new("bash")
            .args(["-c", &watch])
            .stdin(read_end)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let engine = Command::new("bash")
            .args(["-c", command])
            .stdin(Stdio::null())
            .stdout(output.0)
            .stderr(output.1)
            .process_group(watchdog.id() as i32)
            .spawn();
        match engine {
            Ok(engine) => Ok(Self { engine, watchdog, alive }),
            Err(error) => {
                // Both fail only where it has ended already.
                let _ = watchdog.kill().and_then(|()| watchdog.wait());
                Err(error)
            }
        }
    }

    /// Waits for the engine's end and leaves nothing of its group.
    fn supervise(mut self, gone: &Gone, status: &Status) {
        wait_without_reaping(self.engine.id());
        gone.set();
        let mut ended = status.ended.lock().unwrap_or_else(PoisonError::into_inner);
        // What the command left behind in its group has nobody that ends it.
        // SAFETY: the group's leader is not reaped yet, so the id is still that of the group.
        unsafe { libc::kill(-(self.watchdog.id() as i32), libc::SIGKILL) };
        // Waiting for a child of one's own fails only where somebody else has reaped it: then nothing is known of its
        // end.
        *ended = Some(self.engine.wait().unwrap_or_else(|_| ExitStatus::from_raw(0)));
        let _ = self.watchdog.wait();
        drop(self.alive);
        status.changed.notify_all();
    }
}

/// Waits for the end of a child, which stays a zombie.
fn wait_without_reaping(pid: u32) {
    loop {
        // SAFETY: siginfo_t is plain data for which all zeros are valid, and waitid only writes into it.
        let found = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            libc::waitid(libc::P_PID, pid, &raw mut info, libc::WEXITED | libc::WNOWAIT)
        };
        if found == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

fn log_file(path: &Path) -> io::Result<(File, File)> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let file = File::options().append(true).create(true).open(path)?;
    let second = file.try_clone()?;
    Ok((file, second))
}

/// A port that was free a moment ago. An engine that loses it to another process is started once more, on another.
fn free_port() -> io::Result<u16> {
    Ok(std::net::TcpListener::bind((HOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(text: &str) -> EngineCommand {
        EngineCommand { command: text.to_owned(), startup_seconds: 5, stop_seconds: 20, both_at_once: false }
    }

    #[test]
    fn templates() {
        assert!(command("vllm serve {model} --port {port}").check().is_ok());
        assert!(command("x {model} {port} --config '{\"a\": 1}'").check().is_ok());
        let failure = command("x {model} {prot}").check().unwrap_err();
        assert_eq!(failure.hint.as_deref(), Some("did you mean 'port'?"));
        assert!(command("x {model}").check().unwrap_err().message.contains("{port} is missing"));
        let filled = command("x {model} {port} {name}").filled("candidate", Path::new("/a b"), 7);
        assert_eq!(filled, "x '/a b' 7 candidate");
    }

    #[test]
    fn the_whole_group_ends_and_a_crash_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let marker = dir.path().join("child");
        let text =
            format!("sleep 60 & echo $! > {0}; echo port {{port}} of {{model}}; wait", marker.display());
        let mut engine =
            Launched::start(&command(&text), "baseline", Path::new("m"), &dir.path().join("l/e.log"))
                .unwrap();
        let child = loop {
            match std::fs::read_to_string(&marker) {
                Ok(text) if text.ends_with('\n') => break text.trim().parse::<i32>().unwrap(),
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        assert!(engine.why_gone().is_none());
        engine.stop();
        assert!(engine.why_gone().is_some() && engine.excerpt().starts_with("port "));
        // A killed process ends when it is next scheduled, and stays until its new parent has noticed.
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            if state.is_empty() || state.contains(") Z ") {
                break;
            }
            assert!(Instant::now() < deadline, "{state}");
            std::thread::sleep(Duration::from_millis(10));
        }

        let text = "echo 'torch.OutOfMemoryError: CUDA out of memory'; exit 1 # {model} {port}";
        let engine = Launched::start(&command(text), "b", Path::new("m"), &dir.path().join("2.log")).unwrap();
        assert!(engine.status.wait(Duration::from_secs(20)));
        assert!(engine.gone.is_set());
        let why = engine.why_gone().unwrap();
        assert_eq!(why.class, crate::record::FailureClass::DeploymentHealthFailed);
        assert!(why.excerpt.contains("CUDA out of memory"));
    }

    /// The pipe is closed as by a process that was killed.
    #[test]
    fn the_watchdog_ends_a_group_that_ignores_sigterm() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("e.log");
        let output = log_file(&log).unwrap();
        let processes = Processes::start("trap '' TERM; (echo up; sleep 60) | cat", output, 1).unwrap();
        let Processes { mut engine, mut watchdog, alive } = processes;
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::fs::read_to_string(&log).unwrap() != "up\n" {
            assert!(Instant::now() < deadline, "the engine did not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(engine.try_wait().unwrap().is_none() && watchdog.try_wait().unwrap().is_none());
        drop(alive);
        assert_eq!(engine.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert_eq!(watchdog.wait().unwrap().signal(), Some(libc::SIGKILL));
    }
}
