//! `day0 doctor`.

use std::path::PathBuf;

use serde::Serialize;

use super::{Settings, output};
use crate::base::env_vars;
use crate::base::threads::Threads;
use crate::base::units::human_bytes;
use crate::checkpoint::hub_env::HubEnv;
use crate::device::{self, DeviceReport};
use crate::engine;
use crate::ops::kernel_path::ComputeDtype;
use crate::record::Failure;
use crate::record::provenance::{GIT_HASH, TOOL_VERSION};

#[derive(Serialize)]
struct Report {
    version: String,
    git_hash: String,
    kernel_path: String,
    kernel_path_bf16: String,
    threads: Threads,
    device: DeviceReport,
    cache_dir: PathBuf,
    cache_writable: bool,
    hub_cache: PathBuf,
    hub_offline: bool,
    hub_token: bool,
}

pub(super) fn run(settings: &Settings) -> Result<u8, Failure> {
    let report = gather(settings);
    if settings.json {
        output::json(&report)?;
        return Ok(0);
    }
    let cpu = &report.device.cpu;
    let bytes = |b: Option<u64>| b.map_or_else(|| "unknown".to_owned(), human_bytes);
    let row = |name: &str, value: &str| output::line(&format!("{name:<14} {value}"));
    row("day0", &format!("{} ({})", report.version, report.git_hash));
    row("cpu", &format!("{} ({})", cpu.model.as_deref().unwrap_or("unknown"), cpu.arch));
    row("features", &cpu.features.names().join(" "));
    row(
        "memory",
        &format!("{} available of {}", bytes(cpu.memory.available_bytes), bytes(cpu.memory.total_bytes)),
    );
    row("threads", &format!("{} (from {})", report.threads.count, report.threads.origin));
    row("kernel path", &format!("{}, {}", report.kernel_path, report.kernel_path_bf16));
    for gpu in &report.device.cuda.devices {
        let (major, minor) = gpu.compute_capability;
        row(
            "gpu",
            &format!("{} {} sm_{major}{minor}, {}", gpu.ordinal, gpu.name, human_bytes(gpu.total_bytes)),
        );
    }
    if let Some(why) = &report.device.cuda.unavailable {
        row("gpu", &format!("none: {why}"));
    }
    let cuda = &report.device.cuda;
    if let Some(version) = &cuda.driver_version {
        row("cuda driver", &format!("CUDA {version}"));
    }
    let at = |file: &Option<PathBuf>| file.as_ref().map_or(String::new(), |f| format!(" in {}", f.display()));
    let version = cuda.compiler_version.as_ref().map(|v| format!("NVRTC {v}{}", at(&cuda.compiler_file)));
    let missing = cuda.compiler_unavailable.as_ref().map(|why| format!("none: {why}"));
    row("cuda compiler", &version.or(missing).unwrap_or_default());
    let version = cuda.products_version.map(|v| format!("cuBLASLt {v}{}", at(&cuda.products_file)));
    let missing = cuda.products_unavailable.as_ref().map(|why| format!("none: {why}"));
    row("cuda products", &version.or(missing).unwrap_or_default());
    let kernels = &cuda.kernels;
    row(
        "cuda kernels",
        &format!("{} compiled, {} in {}", kernels.count, human_bytes(kernels.bytes), kernels.dir.display()),
    );
    let writable = if report.cache_writable { "" } else { " (not writable)" };
    row("cache", &format!("{}{writable}", report.cache_dir.display()));
    row("hub cache", &report.hub_cache.display().to_string());
    let offline = if report.hub_offline { "offline" } else { "online" };
    row("hub", &format!("{offline}, {}", if report.hub_token { "token set" } else { "no token" }));
    Ok(0)
}

fn gather(settings: &Settings) -> Report {
    let cache_dir = env_vars::cache_dir();
    let hub = HubEnv::from_env();
    Report {
        version: TOOL_VERSION.to_owned(),
        git_hash: GIT_HASH.to_owned(),
        kernel_path: engine::kernel_path(ComputeDtype::F32).to_owned(),
        kernel_path_bf16: engine::kernel_path(ComputeDtype::Bf16).to_owned(),
        threads: settings.threads.clone(),
        device: device::report(),
        cache_writable: std::fs::create_dir_all(&cache_dir).is_ok()
            && tempfile::tempfile_in(&cache_dir).is_ok(),
        cache_dir,
        hub_cache: hub.cache,
        hub_offline: hub.offline,
        hub_token: hub.token.is_some(),
    }
}
