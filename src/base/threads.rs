//! How many threads to use, and where the number comes from.

use std::fs;

use super::env_vars;

/// A thread count with its origin, for `day0 doctor` and the records.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Threads {
    /// Number of worker threads, at least 1.
    pub count: usize,
    /// Where the number comes from, e.g. `--threads`, `SLURM_CPUS_PER_TASK`, `cgroup quota`, `physical cores`.
    pub origin: String,
}

/// `--threads`, else SLURM_CPUS_PER_TASK, else SLURM_CPUS_ON_NODE, else the cgroup quota, else physical cores.
pub fn detect(flag: Option<usize>) -> Threads {
    let from = |count: usize, origin: &str| Threads { count: count.max(1), origin: origin.to_owned() };
    if let Some(n) = flag {
        return from(n, "--threads");
    }
    for name in [env_vars::SLURM_CPUS_PER_TASK, env_vars::SLURM_CPUS_ON_NODE] {
        if let Some(n) = env_vars::get(name).and_then(|v| v.trim().parse().ok()) {
            return from(n, name);
        }
    }
    let affinity = std::thread::available_parallelism().map_or(1, usize::from);
    if let Some(quota) = cgroup_quota().filter(|q| *q < affinity) {
        return from(quota, "cgroup quota");
    }
    match physical_cores().filter(|cores| *cores <= affinity) {
        Some(cores) => from(cores, "physical cores"),
        None => from(affinity, "CPU affinity"),
    }
}

/// CPUs granted by cgroup v2 `cpu.max`, rounded up; `None` when unlimited or unknown.
fn cgroup_quota() -> Option<usize> {
    let text = fs::read_to_string("/sys/fs/cgroup/cpu.max").ok()?;
    let mut parts = text.split_whitespace();
    let quota: f64 = parts.next()?.parse().ok()?;
    let period: f64 = parts.next()?.parse().ok()?;
    (period > 0.0).then(|| (quota / period).ceil() as usize)
}

/// Distinct (package, core) pairs among the CPUs of this machine.
fn physical_cores() -> Option<usize> {
    let mut cores = std::collections::BTreeSet::new();
    for entry in fs::read_dir("/sys/devices/system/cpu").ok()?.flatten() {
        let topology = entry.path().join("topology");
        let read = |name| fs::read_to_string(topology.join(name)).ok();
        if let (Some(package), Some(core)) = (read("physical_package_id"), read("core_id")) {
            cores.insert((package, core));
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}
