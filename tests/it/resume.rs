//! Runs that are killed, interrupted or starved of disk end as if nothing had happened, or say what to do.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::common::{command, day0, ran, read_json, turn};

/// Few enough items that no run can accept, so that every run ends with the same code.
const LIMIT: &str = "60";

fn release_args(run: &str) -> Vec<&str> {
    vec!["release", "--limit", LIMIT, "--recipe", "w8a8", "--out", run]
}

/// `release.json` without what differs between two runs on the same inputs.
fn comparable(run: &Path) -> Value {
    let mut record = read_json(run.join("release.json"));
    day0::release::remove_volatile(&mut record);
    for key in ["run_id", "recommendation", "baseline_reused"] {
        record.as_object_mut().unwrap().remove(key);
    }
    record
}

/// Starts `args`, sends `signal` after `delay`, returns the exit code (`None` when the signal ended it).
fn signalled(dir: &Path, args: &[&str], cache: &Path, delay: Duration, signal: i32) -> Option<i32> {
    let mut child = command(dir, args)
        .env("DAY0_CACHE", cache)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(delay);
    // SAFETY: sends a signal to a child that this process has not waited for yet.
    unsafe { libc::kill(child.id() as i32, signal) };
    child.wait().unwrap().code()
}

fn partial_files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path.clone());
            }
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if [".partial", ".part"].iter().any(|end| name.ends_with(end)) {
                found.push(name);
            }
        }
    }
    found
}

#[test]
fn ten_kills_at_random_moments_change_nothing() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    // Own caches: a reused baseline would shorten the run that is to be killed.
    let cache = |name: &str| dir.path().join(name);
    let start = Instant::now();
    ran(command(dir.path(), release_args("calm")).env("DAY0_CACHE", cache("c0")).output().unwrap());
    let whole = start.elapsed();
    let expected = comparable(&dir.path().join("calm"));

    let mut rng = ChaCha8Rng::seed_from_u64(10);
    let (mut kills, mut attempt) = (0, 0);
    while kills < 10 {
        attempt += 1;
        assert!(attempt <= 50, "of {attempt} signals only {kills} came before the end of the run");
        let run = format!("killed-{attempt}");
        let cache = cache(&format!("k{attempt}"));
        let delay = whole.mul_f64(rng.random_range(0.02..0.95));
        let mut code = signalled(dir.path(), &release_args(&run), &cache, delay, libc::SIGKILL);
        let path = dir.path().join(&run);
        if code.is_none() {
            kills += 1;
            let args = if path.join("run.json").exists() {
                vec!["release", "--resume", &run]
            } else {
                release_args(&run)
            };
            let resumed = ran(command(dir.path(), args).env("DAY0_CACHE", &cache).output().unwrap());
            code = resumed.code;
            assert_eq!(code, Some(3), "{}\n{}", resumed.stdout, resumed.stderr);
        }
        assert_eq!(comparable(&path), expected, "killed after {delay:?}");
        assert_eq!(partial_files(&path), Vec::<String>::new());
    }
}

#[test]
fn files_left_half_written_by_a_killed_run_are_swept() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let release = ["release", "--limit", "5", "--recipe", "w8a8", "--out", "run"];
    // Killed while the run directory was being made: no run.json yet.
    std::fs::create_dir(&run).unwrap();
    std::fs::write(run.join(".day0-a1b2c3.part"), "{").unwrap();
    day0(dir.path(), release).expect(3);
    let expected = comparable(&run);
    // Killed between two writes of a run that is then resumed.
    for place in ["eval/baseline", "quantize/checkpoint", "gates", ""] {
        std::fs::write(run.join(place).join(".day0-d4e5f6.part"), "{").unwrap();
    }
    day0(dir.path(), ["release", "--resume", "run"]).expect(3);
    assert_eq!(comparable(&run), expected);
    assert_eq!(partial_files(&run), Vec::<String>::new());
    // A file of the user's own is no leftover.
    std::fs::remove_file(run.join("run.json")).unwrap();
    day0(dir.path(), release).expect(2).says("is not empty");
}

#[test]
fn interrupt_ends_with_its_code_and_the_run_resumes() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    for (signal, fraction) in [(libc::SIGINT, 0.5), (libc::SIGTERM, 0.8)] {
        let run = format!("run-{signal}");
        let start = Instant::now();
        let calm = format!("calm-{signal}");
        ran(command(dir.path(), release_args(&calm))
            .env("DAY0_CACHE", dir.path().join(&calm).with_extension("c"))
            .output()
            .unwrap());
        let delay = start.elapsed().mul_f64(fraction);
        let code = signalled(dir.path(), &release_args(&run), &cache.join(&run), delay, signal);
        assert!(code == Some(128 + signal) || code == Some(3), "{code:?}");
        if code == Some(128 + signal) {
            let args = ["release", "--resume", &run];
            ran(command(dir.path(), args).env("DAY0_CACHE", cache.join(&run)).output().unwrap()).expect(3);
        }
        assert_eq!(comparable(&dir.path().join(run)), comparable(&dir.path().join(calm)));
    }
}

#[test]
fn killed_quantize_leaves_no_checkpoint_under_the_final_name() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let args = ["quantize", "day0-tiny", "--recipe", "mxfp4a16", "--out", "q"];
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for _ in 0..5 {
        let delay = Duration::from_millis(rng.random_range(1..120));
        let code = signalled(dir.path(), &args, super::common::cache(), delay, libc::SIGKILL);
        let target = dir.path().join("q");
        if target.exists() {
            // Under its final name it is complete.
            day0(dir.path(), ["scan", "q", "--against", "day0-tiny"]).expect(0);
            std::fs::remove_dir_all(&target).unwrap();
        } else {
            assert_eq!(code, None);
        }
    }
    day0(dir.path(), args).expect(0);
}

#[test]
fn resuming_what_is_not_a_run_or_has_other_inputs_is_refused() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    day0(dir.path(), ["release", "--resume", "nowhere"]).expect(2).says("not a run directory");
    std::fs::write(dir.path().join("occupied"), "").unwrap();
    day0(dir.path(), ["release", "--limit", "5", "--out", "run"]).expect(3);
    day0(dir.path(), ["release", "--limit", "5", "--out", "run"]).expect(2).says("--resume");
    let config = dir.path().join("run/day0.yaml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("limit: 5", "limit: 6")).unwrap();
    day0(dir.path(), ["release", "--resume", "run"]).expect(2).says("inputs changed");
}

/// Runs `day0 args` in a file system of `kib` KiB, in a mount namespace of its own; `None` where that is forbidden.
fn on_small_disk(kib: usize, args: &[&str]) -> Option<super::common::Ran> {
    let dir = tempfile::tempdir().unwrap();
    let mount =
        format!("mount -t tmpfs -o size={kib}k tmpfs {0} && cd {0} && exec \"$@\"", dir.path().display());
    let inner = command(dir.path(), args);
    let output = std::process::Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", &mount, "sh"])
        .arg(inner.get_program())
        .args(args)
        .env("DAY0_CACHE", super::common::cache())
        .output()
        .ok()?;
    let ran = ran(output);
    if ran.stderr.contains("unshare") || ran.stderr.contains("mount:") {
        println!("skipped: no mount namespace here: {}", ran.stderr.trim());
        return None;
    }
    Some(ran)
}

#[test]
fn full_disk_is_a_transient_fault_and_leaves_no_checkpoint() {
    let _turn = turn();
    // The model must be unpacked before the disk is small.
    day0(Path::new("."), ["scan", "day0-tiny", "--json"]).says("parameters");
    let args = ["quantize", "day0-tiny", "--recipe", "fp8_dynamic", "--out", "q"];
    if let Some(ran) = on_small_disk(1024, &args) {
        ran.expect(75).says("INFRA_TRANSIENT").says("No space left");
    }
    if let Some(ran) = on_small_disk(512, &["release", "--limit", "10", "--out", "run"]) {
        assert_eq!(ran.code, Some(75), "{}\n{}", ran.stdout, ran.stderr);
    }
}
