//! What the CPU can compute with, and how much memory there is.

use serde::{Deserialize, Serialize};

/// The instruction sets that kernels are chosen by, and the machine's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// `x86_64`, `aarch64`, ….
    pub arch: String,
    /// The model's name as the system gives it.
    pub model: Option<String>,
    /// Logical CPUs this process may run on.
    pub logical_cpus: usize,
    /// Usable instruction sets.
    pub features: CpuFeatures,
    /// Memory.
    pub memory: Memory,
}

/// Instruction sets used for dispatch, each known to be supported by CPU and operating system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuFeatures {
    /// 256-bit integer vectors.
    pub avx2: bool,
    /// Fused multiply-add.
    pub fma: bool,
    /// f16 conversions.
    pub f16c: bool,
    /// 512-bit vectors.
    pub avx512f: bool,
    /// 512-bit vectors of bytes and words.
    pub avx512bw: bool,
    /// AVX-512 on shorter vectors.
    pub avx512vl: bool,
    /// bf16 dot products.
    pub avx512bf16: bool,
    /// int8 dot products.
    pub avx512vnni: bool,
    /// Arm vectors.
    pub neon: bool,
}

/// Physical memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Installed, or granted by the cgroup where that is less.
    pub total_bytes: Option<u64>,
    /// Available without swapping.
    pub available_bytes: Option<u64>,
}

impl CpuFeatures {
    /// Asks the CPU.
    #[cfg(target_arch = "x86_64")]
    pub fn detect() -> Self {
        Self {
            avx2: is_x86_feature_detected!("avx2"),
            fma: is_x86_feature_detected!("fma"),
            f16c: is_x86_feature_detected!("f16c"),
            avx512f: is_x86_feature_detected!("avx512f"),
            avx512bw: is_x86_feature_detected!("avx512bw"),
            avx512vl: is_x86_feature_detected!("avx512vl"),
            avx512bf16: is_x86_feature_detected!("avx512bf16"),
            avx512vnni: is_x86_feature_detected!("avx512vnni"),
            neon: false,
        }
    }

    /// Asks the CPU; NEON belongs to every 64-bit Arm.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn detect() -> Self {
        Self { neon: cfg!(target_arch = "aarch64"), ..Self::default() }
    }

    /// The names of the supported sets, in the order of the fields.
    pub fn names(&self) -> Vec<&'static str> {
        [
            ("avx2", self.avx2),
            ("fma", self.fma),
            ("f16c", self.f16c),
            ("avx512f", self.avx512f),
            ("avx512bw", self.avx512bw),
            ("avx512vl", self.avx512vl),
            ("avx512bf16", self.avx512bf16),
            ("avx512vnni", self.avx512vnni),
            ("neon", self.neon),
        ]
        .into_iter()
        .filter_map(|(name, supported)| supported.then_some(name))
        .collect()
    }
}

/// Describes this machine's CPU and memory.
pub fn probe() -> Cpu {
    Cpu {
        arch: std::env::consts::ARCH.to_owned(),
        model: read("/proc/cpuinfo").as_deref().and_then(model_name),
        logical_cpus: std::thread::available_parallelism().map_or(1, usize::from),
        features: CpuFeatures::detect(),
        memory: memory(),
    }
}

/// Total and available memory; the cgroup's limit counts where it is lower.
pub fn memory() -> Memory {
    let meminfo = read("/proc/meminfo").unwrap_or_default();
    let mut memory = Memory {
        total_bytes: meminfo_bytes(&meminfo, "MemTotal:"),
        available_bytes: meminfo_bytes(&meminfo, "MemAvailable:"),
    };
    // "max" is no number: unlimited.
    let bytes = |file: &str| read(file).and_then(|text| text.trim().parse::<u64>().ok());
    if let Some(limit) = bytes("/sys/fs/cgroup/memory.max") {
        let free = bytes("/sys/fs/cgroup/memory.current").map(|used| limit.saturating_sub(used));
        memory.total_bytes = memory.total_bytes.map(|total| total.min(limit));
        memory.available_bytes =
            memory.available_bytes.map(|available| available.min(free.unwrap_or(available)));
    }
    memory
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn model_name(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn meminfo_bytes(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_proc() {
        let meminfo = "MemTotal:       24684084 kB\nMemAvailable:   22328524 kB\nBad: x kB\n";
        assert_eq!(meminfo_bytes(meminfo, "MemAvailable:"), Some(22_328_524 * 1024));
        assert_eq!(meminfo_bytes(meminfo, "Bad:"), None);
        assert_eq!(meminfo_bytes(meminfo, "Swap:"), None);
        assert_eq!(model_name("processor : 0\nmodel name\t: AMD EPYC\n").as_deref(), Some("AMD EPYC"));
    }

    #[test]
    fn probe_is_plausible() {
        let cpu = probe();
        assert!(cpu.logical_cpus >= 1);
        assert!(cpu.memory.available_bytes <= cpu.memory.total_bytes);
        assert_eq!(cpu.features.names().contains(&"avx2"), cpu.features.avx2);
    }
}
