//! Runs the `day0` binary the way a user does.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};

use serde_json::Value;

/// Tests that run commands at the same time. While one waits, for an engine, a client or a disk, another computes; more
/// would only take the cores from each other.
const MOST_TURNS: usize = 2;

/// Turns that are taken, and who waits for one.
static TURNS: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// What a command printed and returned.
pub struct Ran {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Fails the test with everything printed unless the exit code is `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// Fails the test unless `text` was printed somewhere.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        let said = self.stdout.contains(text) || self.stderr.contains(text);
        assert!(said, "'{text}' is missing\nstdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }
}

/// A turn to run commands, until it is dropped.
pub struct Turn(());

/// Takes a turn to run commands; all share one baseline cache.
pub fn turn() -> Turn {
    let (taken, left) = (&TURNS.0, &TURNS.1);
    let all_taken = |taken: &mut usize| *taken == MOST_TURNS;
    let taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
    *left.wait_while(taken, all_taken).unwrap_or_else(PoisonError::into_inner) += 1;
    Turn(())
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TURNS.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        TURNS.1.notify_one();
    }
}

/// The cache that all tests of this run share; empty when the run begins.
pub fn cache() -> &'static Path {
    static CACHE: OnceLock<PathBuf> = OnceLock::new();
    CACHE.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("day0-cache");
        if dir.exists() {
            std::fs::remove_dir_all(&dir).unwrap();
        }
        std::fs::create_dir_all(&dir).unwrap();
        dir
    })
}

/// A command on the shared cache, in `dir`, with an environment that nothing outside decides.
pub fn command<S: AsRef<OsStr>>(dir: &Path, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_day0"));
    command.args(args).current_dir(dir).env("DAY0_CACHE", cache()).stdin(Stdio::null());
    for name in
        ["HF_HOME", "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"]
    {
        command.env_remove(name);
    }
    command
}

/// Runs `day0 args` in `dir`.
pub fn day0<S: AsRef<OsStr>>(dir: &Path, args: impl IntoIterator<Item = S>) -> Ran {
    ran(command(dir, args).output().unwrap())
}

/// The readable form of a finished process.
pub fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Reads one request, answers it with the status and JSON that `respond(path, body)` gives, and says no more; `headers`
/// are lines that the answer carries as well. `None` where the connection broke or `respond` has no answer.
pub fn answer_http(
    stream: &TcpStream,
    headers: &str,
    respond: impl FnOnce(&str, &[u8]) -> Option<(u16, Value)>,
) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (status, value) = respond(first.split(' ').nth(1)?, &body)?;
    let text = value.to_string();
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{headers}Connection: close\r\n\r\n",
        text.len()
    );
    let mut out = stream;
    out.write_all(head.as_bytes()).and_then(|()| out.write_all(text.as_bytes())).ok()
}

/// Overwrites the data of a tensor of `model.safetensors` with zeros.
pub fn overwrite_with_zeros(dir: &Path, tensor: &str) {
    let path = dir.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let offset = |i: usize| 8 + length + header[tensor]["data_offsets"][i].as_u64().unwrap() as usize;
    bytes[offset(0)..offset(1)].fill(0);
    std::fs::write(&path, bytes).unwrap();
}

/// Reads a JSON artifact.
#[track_caller]
pub fn read_json(path: impl AsRef<Path>) -> Value {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}
