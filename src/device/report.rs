//! Everything about this machine that decides which kernels run: for `day0 doctor` and for provenance.

use serde::{Deserialize, Serialize};

use super::{Cpu, Cuda, cpu, gpu};

/// CPU, memory and GPUs of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// The CPU and its memory.
    pub cpu: Cpu,
    /// CUDA devices, or why there are none.
    pub cuda: Cuda,
}

/// Probes the machine. Takes milliseconds without a GPU, up to a second with one.
pub fn report() -> DeviceReport {
    DeviceReport { cpu: cpu::probe(), cuda: gpu::probe() }
}

/// What an engine of this machine computes on: its visible GPUs, else its CPU. Two machines of one name give the same
/// numbers as far as hardware decides.
pub fn name() -> String {
    let mut names: Vec<String> = gpu::probe().devices.into_iter().map(|gpu| gpu.name).collect();
    names.dedup();
    if names.is_empty() {
        let cpu = cpu::probe();
        return cpu.model.unwrap_or(cpu.arch);
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_a_name() {
        assert!(!name().is_empty());
        assert_eq!(name(), name());
    }

    #[test]
    fn serializes_and_comes_back() {
        let report = report();
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<DeviceReport>(&text).unwrap(), report);
    }
}
