// Builds the emulated CUDA driver, compiler and matrix products (driver.cpp, compiler.cpp, cublaslt.cpp) with the system's
// C++ compiler. Included by unit and integration tests alike.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Folder of the sources.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cuda");

/// Products under the one name that NVIDIA's wheels have, of another version than `libcublasLt.so`.
#[allow(dead_code, reason = "each test binary uses its part")]
pub const WHEEL_PRODUCTS: (&str, usize) = ("wheel/libcublasLt.so.13", 130_103);

/// The first C++ compiler that runs.
pub fn cxx() -> Option<&'static str> {
    ["c++", "g++", "clang++"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success()))
}

/// A folder with `libcuda.so`, `libnvrtc.so` and `libcublasLt.so` that compute on the host, and in `wheel` products as pip
/// installs them: [`WHEEL_PRODUCTS`]. `None` without a C++ compiler, which is printed. Only for Linux. `dir` is made anew when
/// a source changed.
pub fn build(dir: &Path) -> Option<PathBuf> {
    let Some(cxx) = cxx().filter(|_| cfg!(target_os = "linux")) else {
        println!("skipped: no C++ compiler (c++, g++, clang++) that could build the emulated CUDA device");
        return None;
    };
    let sources =
        ["device.h", "driver.cpp", "compiler.cpp", "cublaslt.cpp"].map(|name| Path::new(SOURCES).join(name));
    let mut hasher = blake3::Hasher::new();
    for source in &sources {
        hasher.update(&std::fs::read(source).expect("the emulator's source"));
    }
    let made = dir.join(&hasher.finalize().to_hex()[..16]);
    if made.exists() {
        return Some(made);
    }
    std::fs::create_dir_all(dir).expect("a folder for the emulator");
    let building = tempfile::tempdir_in(dir).expect("a folder to build in");
    let to = building.path();
    std::fs::copy(&sources[0], to.join("device.h")).expect("the device's header");
    let run = |arguments: &[String]| {
        let output = Command::new(cxx).args(arguments).output().expect("the compiler runs");
        assert!(output.status.success(), "{arguments:?}:\n{}", String::from_utf8_lossy(&output.stderr));
    };
    let text = |path: &Path| path.display().to_string();
    let common = ["-std=c++17", "-O1", "-fPIC"].map(str::to_owned);
    std::fs::create_dir(to.join("wheel")).expect("a folder for what pip installs");
    let libraries = ["libcuda.so", "libnvrtc.so", "libcublasLt.so"].into_iter().zip(&sources[1..]);
    for (name, source) in libraries.chain([(WHEEL_PRODUCTS.0, &sources[3])]) {
        let mut arguments = common.to_vec();
        let soname = name.rsplit('/').next().unwrap_or(name);
        arguments.extend(["-shared".to_owned(), "-Wall".to_owned(), format!("-Wl,-soname,{soname}")]);
        if name == WHEEL_PRODUCTS.0 {
            arguments.push(format!("-DVERSION={}", WHEEL_PRODUCTS.1));
        }
        arguments.push(format!("-DEMULATOR_CXX=\"{cxx}\""));
        arguments.push(format!("-DEMULATOR_DIR=\"{}\"", text(&made)));
        arguments.extend(["-o".to_owned(), text(&to.join(name)), text(source), "-ldl".to_owned()]);
        run(&arguments);
    }
    // The header is most of what a kernel's compilation reads.
    let mut arguments = common.to_vec();
    arguments
        .extend(["-ffp-contract=off", "-fvisibility=hidden", "-w", "-x", "c++-header"].map(str::to_owned));
    arguments.extend(["-o".to_owned(), text(&to.join("device.h.gch")), text(&to.join("device.h"))]);
    run(&arguments);
    // Another test may have been faster; its result is the same.
    if std::fs::rename(building.keep(), &made).is_err() {
        assert!(made.exists(), "the emulator cannot be moved to {}", made.display());
    }
    Some(made)
}
