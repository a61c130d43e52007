//! A fake vLLM: vLLM's API over `day0 serve`, as a process that day0 starts from a command, with faults on demand.
//!
//! The process is this test binary itself, told by its environment to serve instead of to test.

use std::io::{BufRead, BufReader};
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
}

const FAULTS: [Fault; 11] = [
    Fault::None,
    Fault::SlowStart,
    Fault::NeverUp,
    Fault::WrongModel,
    Fault::NoPromptLogprobs,
    Fault::Unauthorized,
    Fault::RateLimitStorm,
    Fault::RateLimit,
    Fault::CrashOnce,
    Fault::CrashAlways,
    Fault::OtherModelAfterCrash,
];

const FAULT: &str = "FAKE_VLLM_FAULT";

/// `serve.engine` of a day0.yaml that starts it. `dir` keeps what it remembers between two starts.
pub fn config(fault: Fault, dir: &Path) -> String {
    let exe = std::env::current_exe().unwrap();
    let command = format!(
        "{FAULT}={fault:?} FAKE_VLLM_ARM={{arm}} FAKE_VLLM_MODEL={{model}} FAKE_VLLM_PORT={{port}} \
         FAKE_VLLM_NAME={{name}} FAKE_VLLM_DIR={} exec {} --exact fake_vllm::process --nocapture",
        dir.display(),
        exe.display()
    );
    format!("serve:\n  engine:\n    command: {}\n    startup_seconds: 60\n", json!(command))
}

/// Serves where the environment says so; a test of nothing otherwise.
#[test]
fn process() {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let Some(fault) = FAULTS.into_iter().find(|f| format!("{f:?}") == variable(FAULT)) else { return };
    let fault = if variable("FAKE_VLLM_ARM") == "candidate" { fault } else { Fault::None };
    let started_before = Path::new(&variable("FAKE_VLLM_DIR")).join("started");
    let again = started_before.exists();
    if variable("FAKE_VLLM_ARM") == "candidate" {
        std::fs::write(&started_before, "").unwrap();
    }
    println!("INFO vLLM API server version 0.33.0");
    match fault {
        Fault::SlowStart => std::thread::sleep(Duration::from_secs(2)),
        Fault::NeverUp => {
            println!("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB");
            std::process::exit(1);
        }
        _ => {}
    }
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

impl Fake {
    fn respond(&self, path: &str, body: &[u8]) -> (u16, Value) {
        match path {
            "/health" => (200, json!({})),
            "/version" => (200, json!({"version": "0.33.0"})),
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
            Fault::CrashAlways | Fault::CrashOnce | Fault::OtherModelAfterCrash
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
