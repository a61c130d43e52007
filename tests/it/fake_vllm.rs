//! A fake vLLM: vLLM's API over `day0 serve`, as a process that day0 starts from a command, with faults on demand.
//!
//! The process is this test binary itself, told by its environment to serve instead of to test.

use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::common::answer_http;

/// What goes wrong, on the candidate's arm only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    SlowStart,
    NeverUp,
    /// On both arms: it lives and never answers.
    Hangs,
    IgnoresSigterm,
    WrongModel,
    NoPromptLogprobs,
    Unauthorized,
    /// As many refusals in a row as one request is tried again after.
    RateLimitStorm,
    RateLimit,
    CrashOnce,
    CrashAlways,
    /// The engine that is started after a crash serves another model.
    OtherModelAfterCrash,
    /// The engine that is started after a crash is another version.
    OtherVersionAfterCrash,
    /// day0 is sent SIGINT while it waits for the first engine; later ones start slowly.
    InterruptedStart,
    /// day0 is sent SIGINT while it scores with the first engine; later ones start slowly.
    InterruptedScoring,
}

const FAULTS: [Fault; 16] = [
    Fault::None,
    Fault::SlowStart,
    Fault::NeverUp,
    Fault::Hangs,
    Fault::IgnoresSigterm,
    Fault::WrongModel,
    Fault::NoPromptLogprobs,
    Fault::Unauthorized,
    Fault::RateLimitStorm,
    Fault::RateLimit,
    Fault::CrashOnce,
    Fault::CrashAlways,
    Fault::OtherModelAfterCrash,
    Fault::OtherVersionAfterCrash,
    Fault::InterruptedStart,
    Fault::InterruptedScoring,
];

const FAULT: &str = "FAKE_VLLM_FAULT";

/// What the log says first.
pub const GREETING: &str = "INFO vLLM API server version 0.33.0";

/// How day0 is told to start it.
pub struct Setup {
    pub fault: Fault,
    /// Whether its output goes through another process, so that it is not the leader of its group.
    pub piped: bool,
    /// `serve.engine` beside the command.
    pub settings: Value,
}

impl From<Fault> for Setup {
    fn from(fault: Fault) -> Self {
        Self { fault, piped: false, settings: json!({"startup_seconds": 60}) }
    }
}

impl Setup {
    /// A day0.yaml. `dir` keeps what the fake remembers between two starts.
    pub fn config(&self, dir: &Path) -> String {
        let exe = std::env::current_exe().unwrap();
        let (before, after) = if self.piped { ("", " 2>&1 | cat") } else { ("exec ", "") };
        let command = format!(
            "{FAULT}={:?} FAKE_VLLM_ARM={{arm}} FAKE_VLLM_MODEL={{model}} FAKE_VLLM_PORT={{port}} \
             FAKE_VLLM_NAME={{name}} FAKE_VLLM_DIR={} {before}{} --exact fake_vllm::process --nocapture{after}",
            self.fault,
            dir.display(),
            exe.display()
        );
        let mut engine = self.settings.clone();
        engine["command"] = json!(command);
        json!({"serve": {"engine": engine}}).to_string()
    }
}

/// How often the candidate's engine was started.
pub fn starts(dir: &Path) -> usize {
    std::fs::read_to_string(dir.join("starts")).unwrap_or_default().lines().count()
}

/// Serves where the environment says so; a test of nothing otherwise.
#[test]
fn process() {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let Some(fault) = FAULTS.into_iter().find(|f| format!("{f:?}") == variable(FAULT)) else { return };
    let is_candidate = variable("FAKE_VLLM_ARM") == "candidate";
    let fault = if is_candidate || fault == Fault::Hangs { fault } else { Fault::None };
    let dir = variable("FAKE_VLLM_DIR");
    let again = starts(Path::new(&dir)) > 0;
    if is_candidate {
        let path = Path::new(&dir).join("starts");
        let mut starts = File::options().append(true).create(true).open(path).unwrap();
        starts.write_all(b"start\n").unwrap();
    }
    begin(fault, again);
    let other = fault == Fault::WrongModel || (fault == Fault::OtherModelAfterCrash && again);
    let model = variable("FAKE_VLLM_MODEL");
    let backend = Backend::start(if other { "day0-tiny" } else { &model });
    // A swapped model behind the same path does not say so; a wrong path does.
    let root = if fault == Fault::WrongModel { "/models/other".to_owned() } else { model };
    let fake =
        Fake { fault, again, root, name: variable("FAKE_VLLM_NAME"), backend, count: AtomicUsize::new(0) };
    let listener = TcpListener::bind(format!("127.0.0.1:{}", variable("FAKE_VLLM_PORT"))).unwrap();
    let fake = Arc::new(fake);
    for stream in listener.incoming().map_while(Result::ok) {
        let fake = Arc::clone(&fake);
        std::thread::spawn(move || {
            answer_http(&stream, "Retry-After: 0\r\n", |path, body| Some(fake.respond(path, body)))
        });
    }
}

/// What goes wrong before it serves.
fn begin(fault: Fault, again: bool) {
    if fault == Fault::IgnoresSigterm {
        // SAFETY: ignoring a signal runs no code of this process.
        unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    }
    println!("{GREETING}");
    match fault {
        Fault::SlowStart => std::thread::sleep(Duration::from_secs(1)),
        Fault::InterruptedStart | Fault::InterruptedScoring if again => {
            std::thread::sleep(Duration::from_secs(1));
        }
        Fault::InterruptedStart => {
            interrupt_day0();
            std::thread::sleep(Duration::from_secs(600));
        }
        Fault::Hangs => std::thread::sleep(Duration::from_secs(600)),
        Fault::NeverUp => {
            println!("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB");
            std::process::exit(1);
        }
        _ => {}
    }
}

/// The command is run with `exec`: the process that started it is day0.
fn interrupt_day0() {
    // SAFETY: sends a signal to the parent, which waits for this process and so is there.
    unsafe { libc::kill(libc::getppid(), libc::SIGINT) };
}

/// `day0 serve`; it ends with the process group.
struct Backend {
    url: String,
    id: String,
}

impl Backend {
    fn start(model: &str) -> Self {
        let args = ["serve", model, "--port", "0", "--quiet", "--threads", "2"];
        let mut child =
            Command::new(env!("CARGO_BIN_EXE_day0")).args(args).stdout(Stdio::piped()).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        std::thread::spawn(move || child.wait());
        let url = url.trim().to_owned();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let card: Value = reqwest::blocking::get(format!("{url}/v1/models")).unwrap().json().unwrap();
        Self { id: card["data"][0]["id"].as_str().unwrap().to_owned(), url }
    }
}

struct Fake {
    fault: Fault,
    again: bool,
    root: String,
    name: String,
    backend: Backend,
    count: AtomicUsize,
}

/// Completions that the probe of an arm makes before scoring begins.
const PROBES: usize = 16;
/// Completions that show before the first item that the engine is still the probed one.
const FINGERPRINT: usize = 8;

impl Fake {
    fn respond(&self, path: &str, body: &[u8]) -> (u16, Value) {
        match path {
            "/health" => (200, json!({})),
            "/version" => {
                let other = self.fault == Fault::OtherVersionAfterCrash && self.again;
                (200, json!({"version": if other { "0.34.0" } else { "0.33.0" }}))
            }
            "/v1/models" => {
                let card = json!({"id": self.name, "object": "model", "created": 1, "owned_by": "vllm",
                                  "root": self.root, "max_model_len": 512});
                (200, json!({"object": "list", "data": [card]}))
            }
            "/v1/completions" => self.complete(body),
            _ => (404, json!({"error": {"message": "Not Found", "code": 404}})),
        }
    }

    fn complete(&self, body: &[u8]) -> (u16, Value) {
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        let error =
            |status: u16, message: &str| (status, json!({"error": {"message": message, "code": status}}));
        match self.fault {
            Fault::Unauthorized => return error(401, "Unauthorized"),
            Fault::RateLimit if number > PROBES => return error(429, "Too Many Requests"),
            Fault::RateLimitStorm if (PROBES + 1..PROBES + 5).contains(&number) => {
                return error(429, "Too Many Requests");
            }
            Fault::InterruptedScoring if number == PROBES + FINGERPRINT + 2 && !self.again => {
                interrupt_day0();
            }
            Fault::CrashAlways
            | Fault::CrashOnce
            | Fault::OtherModelAfterCrash
            | Fault::OtherVersionAfterCrash
                if number > PROBES + 4 && (self.fault == Fault::CrashAlways || !self.again) =>
            {
                println!("Fatal Python error: Segmentation fault");
                std::process::abort();
            }
            _ => {}
        }
        let mut body: Value = serde_json::from_slice(body).unwrap();
        body["model"] = json!(self.backend.id);
        let url = format!("{}/v1/completions", self.backend.url);
        let response = reqwest::blocking::Client::new().post(url).json(&body).send().unwrap();
        let status = response.status().as_u16();
        let mut answer: Value = response.json().unwrap();
        if self.fault == Fault::NoPromptLogprobs && body["echo"] == json!(true) {
            for choice in answer["choices"].as_array_mut().unwrap() {
                choice["logprobs"] = Value::Null;
            }
        }
        (status, answer)
    }
}
