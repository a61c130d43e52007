//! The run-time compiler: from a source to the machine code of one architecture, with what the assembler says of
//! registers and spills. Needs no driver.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::driver::sys as driver;
use cudarc::nvrtc::sys::{nvrtcProgram, nvrtcResult};

use super::error::CudaError;
use super::library;
use super::source::{HEADERS, Variant};
use crate::base::env_vars;

library::functions! {
    /// Functions of the compiler that day0 calls.
    Compiler:
    nvrtcCompileProgram(nvrtcProgram, c_int, *const *const c_char) -> nvrtcResult;
    nvrtcCreateProgram(*mut nvrtcProgram, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> nvrtcResult;
    nvrtcDestroyProgram(*mut nvrtcProgram) -> nvrtcResult;
    nvrtcGetCUBIN(nvrtcProgram, *mut c_char) -> nvrtcResult;
    nvrtcGetCUBINSize(nvrtcProgram, *mut usize) -> nvrtcResult;
    nvrtcGetErrorString(nvrtcResult) -> *const c_char;
    nvrtcGetProgramLog(nvrtcProgram, *mut c_char) -> nvrtcResult;
    nvrtcGetProgramLogSize(nvrtcProgram, *mut usize) -> nvrtcResult;
    nvrtcVersion(*mut c_int, *mut c_int) -> nvrtcResult;
}

/// No contraction, no flushing, exact division and roots: codes and scales have the bits of the reference, and fused
/// multiply-adds stand only where the source says so.
const OPTIONS: &[&str] = &[
    "--std=c++17",
    "--fmad=false",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    "--ptxas-options=-v",
];

/// Compiled machine code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cubin {
    /// An ELF image for one architecture.
    pub image: Vec<u8>,
    /// What compiler and assembler said.
    pub log: String,
}

/// The compiler with its version, major and minor.
type Versioned = (Compiler, (u32, u32));

/// The compiler; an error if there is none. Looked for once.
fn compiler() -> Result<&'static Versioned, CudaError> {
    static COMPILER: OnceLock<Result<Versioned, CudaError>> = OnceLock::new();
    COMPILER.get_or_init(load).as_ref().map_err(CudaError::clone)
}

/// Version of the compiler, major and minor; an error if there is none.
pub fn version() -> Result<(u32, u32), CudaError> {
    compiler().map(|(_, version)| *version)
}

/// The file of the compiler, as far as the system says.
pub fn file() -> Option<&'static Path> {
    compiler().ok()?.0.file.as_deref()
}

/// The driver must support the compiler's major version.
pub(super) fn check_against_driver() -> Result<(), CudaError> {
    let compiler = version()?;
    let mut number = 0;
    // SAFETY: the driver is present with all its symbols, and the pointer is valid for the call.
    super::error::check("cuDriverGetVersion", unsafe { driver::cuDriverGetVersion(&raw mut number) })?;
    // Encoded as 1000 · major + 10 · minor (CUDA driver API, cuDriverGetVersion).
    if (number / 1000) as u32 >= compiler.0 {
        return Ok(());
    }
    Err(CudaError::OldDriver {
        driver: format!("{}.{}", number / 1000, number % 1000 / 10),
        compiler: format!("{}.{}", compiler.0, compiler.1),
    })
}

/// Everything that decides what the compiler makes of a variant, beside architecture and version.
pub(super) fn inputs(variant: &Variant) -> Vec<String> {
    let mut all: Vec<String> = OPTIONS.iter().map(|o| (*o).to_owned()).collect();
    all.extend(variant.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    all.extend([variant.source.name.to_owned(), variant.source.text.to_owned()]);
    all.extend(HEADERS.iter().flat_map(|h| [h.name.to_owned(), h.text.to_owned()]));
    all
}

fn load() -> Result<Versioned, CudaError> {
    let asked = env_vars::get_os(env_vars::DAY0_NVRTC).map(PathBuf::from);
    // A compiler without builtins, which it asks for by name, says so when it compiles.
    let library = library::find(asked.as_deref(), "nvrtc", Some("libnvrtc-builtins.so"));
    let library =
        library.ok_or_else(|| CudaError::NoCompiler { at: asked.map(|p| p.display().to_string()) })?;
    let missing = |symbol| CudaError::Compiler { what: format!("it has no {symbol}") };
    let compiler = Compiler::of(library).map_err(missing)?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the pointers are valid for the call.
    compiler.check("nvrtcVersion", unsafe { (compiler.nvrtcVersion)(&raw mut major, &raw mut minor) })?;
    Ok((compiler, (major as u32, minor as u32)))
}

impl Compiler {
    fn check(&self, call: &'static str, code: nvrtcResult) -> Result<(), CudaError> {
        if code == nvrtcResult::NVRTC_SUCCESS {
            return Ok(());
        }
        Err(CudaError::Compiler { what: format!("{call}: {}", self.text_of(code)) })
    }

    fn text_of(&self, code: nvrtcResult) -> String {
        // SAFETY: it returns a static string for any code.
        let text = unsafe { (self.nvrtcGetErrorString)(code) };
        if text.is_null() {
            return format!("{code:?}");
        }
        // SAFETY: a terminated string that lives as long as the library.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

/// Compiles a variant for an architecture such as `sm_90`.
pub fn compile(variant: &Variant, architecture: &str) -> Result<Cubin, CudaError> {
    let (compiler, _) = compiler()?;
    let program = Program::new(compiler, variant)?;
    let mut options = vec![format!("--gpu-architecture={architecture}")];
    options.extend(OPTIONS.iter().map(|o| (*o).to_owned()));
    options.extend(variant.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    let options: Vec<CString> = options.iter().map(|o| c_string(o)).collect();
    let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
    // SAFETY: program and options are alive, and their number is right.
    let code =
        unsafe { (compiler.nvrtcCompileProgram)(program.raw, pointers.len() as i32, pointers.as_ptr()) };
    let log = program.log()?;
    if code == nvrtcResult::NVRTC_SUCCESS {
        return Ok(Cubin { image: program.image()?, log });
    }
    if code == nvrtcResult::NVRTC_ERROR_BUILTIN_OPERATION_FAILURE {
        return Err(CudaError::Compiler { what: format!("{}: {}", compiler.text_of(code), log.trim()) });
    }
    let log = format!("{}: {}", compiler.text_of(code), log.trim());
    Err(CudaError::Compile { kernel: variant.to_string(), architecture: architecture.to_owned(), log })
}

/// A program of the compiler.
struct Program {
    compiler: &'static Compiler,
    raw: nvrtcProgram,
}

impl Program {
    fn new(compiler: &'static Compiler, variant: &Variant) -> Result<Self, CudaError> {
        let (text, name) = (c_string(variant.source.text), c_string(variant.source.name));
        let headers: Vec<(CString, CString)> =
            HEADERS.iter().map(|h| (c_string(h.text), c_string(h.name))).collect();
        let texts: Vec<*const c_char> = headers.iter().map(|h| h.0.as_ptr()).collect();
        let names: Vec<*const c_char> = headers.iter().map(|h| h.1.as_ptr()).collect();
        let mut raw = std::ptr::null_mut();
        // SAFETY: all strings are alive during the call, which copies them; the counts are right.
        let code = unsafe {
            (compiler.nvrtcCreateProgram)(
                &raw mut raw,
                text.as_ptr(),
                name.as_ptr(),
                headers.len() as i32,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        compiler.check("nvrtcCreateProgram", code)?;
        Ok(Self { compiler, raw })
    }

    fn log(&self) -> Result<String, CudaError> {
        let (compiler, mut len) = (self.compiler, 0);
        // SAFETY: the program is alive, the pointer valid for the call.
        compiler.check("nvrtcGetProgramLogSize", unsafe {
            (compiler.nvrtcGetProgramLogSize)(self.raw, &raw mut len)
        })?;
        let mut bytes = vec![0u8; len];
        // SAFETY: the compiler writes the `len` bytes it announced.
        compiler.check("nvrtcGetProgramLog", unsafe {
            (compiler.nvrtcGetProgramLog)(self.raw, bytes.as_mut_ptr().cast())
        })?;
        Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
    }

    fn image(&self) -> Result<Vec<u8>, CudaError> {
        let (compiler, mut len) = (self.compiler, 0);
        // SAFETY: the program is alive, the pointer valid for the call.
        let code = unsafe { (compiler.nvrtcGetCUBINSize)(self.raw, &raw mut len) };
        compiler.check("nvrtcGetCUBINSize", code)?;
        let mut bytes = vec![0u8; len];
        // SAFETY: the compiler writes the `len` bytes it announced.
        compiler.check("nvrtcGetCUBIN", unsafe {
            (compiler.nvrtcGetCUBIN)(self.raw, bytes.as_mut_ptr().cast())
        })?;
        Ok(bytes)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created in `new` and destroyed once.
        unsafe { (self.compiler.nvrtcDestroyProgram)(&raw mut self.raw) };
    }
}

/// Sources and options are ours and hold no zero byte; were there one, the text would end at it.
fn c_string(text: &str) -> CString {
    CString::new(text.split('\0').next().unwrap_or_default()).unwrap_or_default()
}
