//! What benches that compare with other programs share: the machine, the peers' scripts, where results go.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench fails by panicking and prints its results"
)]
#![allow(dead_code, reason = "each bench uses its part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use day0::base::{clock, json};
use serde_json::{Value, json};

/// Median seconds of one call: warmed up, then up to 30 samples of at least 10 ms in about a second.
pub fn median_seconds(mut f: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut calls = 0u32;
    while start.elapsed() < Duration::from_millis(150) || calls == 0 {
        f();
        calls += 1;
    }
    let one = start.elapsed().as_secs_f64() / f64::from(calls);
    let calls = (0.01 / one).ceil() as u32;
    let samples = (1.0 / (one * f64::from(calls))).clamp(5.0, 30.0) as usize;
    let mut seconds: Vec<f64> = (0..samples)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..calls {
                f();
            }
            start.elapsed().as_secs_f64() / f64::from(calls)
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[samples / 2]
}

/// Runs a script of `benches/peers` and returns the JSON of its last line; `None` with a printed reason if it fails.
pub fn peer(
    python: &Path,
    script: &str,
    arguments: &[String],
    environment: &[(&str, &str)],
) -> Option<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(script);
    let mut command = Command::new(python);
    command.arg(path).args(arguments).envs(environment.iter().copied());
    let output = command.output().unwrap();
    if !output.status.success() {
        println!(
            "{script} failed: {}",
            String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default()
        );
        return None;
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Some(serde_json::from_str(text.lines().last().unwrap()).unwrap())
}

/// What the numbers were measured on, and by which command.
pub fn machine(name: &str) -> Value {
    let run = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output();
        output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
    };
    // Directories of this machine say nothing to others.
    let command = std::env::args().map(|a| a.rsplit('/').next().unwrap_or(&a).to_owned());
    json!({
        "name": name, "date": clock::now_iso8601(), "uname": run("uname", &["-srm"]),
        "cpu": run("sh", &["-c", "grep -m1 'model name' /proc/cpuinfo; nproc; grep -m1 flags /proc/cpuinfo"]),
        "load": run("cat", &["/proc/loadavg"]), "commit": run("git", &["rev-parse", "HEAD"]),
        "command": command.collect::<Vec<_>>(),
    })
}

/// Writes `results` to `benches/runs/<date>-<machine>/<file>`.
pub fn write(machine: &str, file: &str, results: &BTreeMap<String, Value>) {
    let date = &clock::now_iso8601()[..10];
    let path = PathBuf::from(format!("benches/runs/{date}-{machine}/{file}"));
    json::write(&path, results).unwrap();
    println!("{}", path.display());
}
