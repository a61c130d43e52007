//! Compiled kernels: kept on disk by everything that decides their code, loaded once a device, launched.
//!
//! A file of the cache is `day0cubin1`, the BLAKE3 digest of the rest (32 bytes), the image. Files appear by a rename,
//! so processes that compile the same kernel at once each write the same bytes; a file whose digest is wrong is made
//! anew. A cache that cannot be written costs time, not the work.

use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cudarc::driver::sys::{self, CUfunction, CUfunction_attribute, CUmodule};

use super::counts::Asked;
use super::error::{CudaError, check};
use super::source::Variant;
use super::{Device, Stream, nvrtc};
use crate::base::{atomic, env_vars};

/// What a file of the cache begins with; the number is that of the layout.
const MAGIC: &[u8] = b"day0cubin1";
const DIGEST_BYTES: usize = 32;
/// Shared memory that a block has without being asked for.
const PLAIN_SHARED_BYTES: u32 = 48 << 10;

/// Identifies the machine code of a variant: digest of source, headers, defines, options, architecture and compiler.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModuleKey(String);

impl ModuleKey {
    /// The key for a variant on an architecture with the compiler that is there.
    pub(super) fn new(variant: &Variant, architecture: &str) -> Result<Self, CudaError> {
        let (major, minor) = nvrtc::version()?;
        let mut hasher = blake3::Hasher::new();
        let compiler = format!("{major}.{minor}");
        let inputs = nvrtc::inputs(variant);
        for part in inputs.iter().map(String::as_str).chain([architecture, &compiler]) {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        Ok(Self(hasher.finalize().to_hex().to_string()))
    }
}

/// The directory of compiled kernels.
#[derive(Debug, Clone)]
pub struct CubinCache {
    dir: PathBuf,
}

impl CubinCache {
    /// `cubins` in the user's cache.
    pub fn of_user() -> Self {
        Self::new(env_vars::cache_dir().join("cubins"))
    }

    /// A directory of one's own.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Number of files and their bytes.
    pub fn size(&self) -> (usize, u64) {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let cubins = entries.filter(|e| e.path().extension().is_some_and(|x| x == "cubin"));
        cubins.filter_map(|e| e.metadata().ok()).fold((0, 0), |(n, bytes), m| (n + 1, bytes + m.len()))
    }

    /// The module from the cache, or compiled and added to it. The calling thread has entered the device.
    pub(super) fn load(
        &self,
        device: &Device,
        key: &ModuleKey,
        variant: &Variant,
    ) -> Result<Module, CudaError> {
        let path = self.dir.join(&key.0).with_extension("cubin");
        if let Some(image) = read(&path) {
            // A whole file that the driver refuses, say after a change of drivers, is made anew too.
            match Module::load(device, &image) {
                Err(CudaError::Call { .. }) => {}
                loaded => return loaded,
            }
        }
        let image = nvrtc::compile(variant, &device.architecture())?.image;
        let module = Module::load(device, &image)?;
        if let Err(error) = write(&path, &image) {
            crate::base::progress::detail(&format!("{}: not kept: {error}", path.display()));
        }
        Ok(module)
    }
}

/// The image in a file of the cache; `None` if there is none or it is damaged.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(path).ok()?;
    let start = MAGIC.len() + DIGEST_BYTES;
    let (digest, image) = bytes.strip_prefix(MAGIC)?.split_at_checked(DIGEST_BYTES)?;
    if image.is_empty() || blake3::hash(image).as_bytes() != digest {
        return None;
    }
    bytes.drain(..start);
    Some(bytes)
}

fn write(path: &Path, image: &[u8]) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    // Without waiting for storage: a file that a crash cuts short fails its digest.
    atomic::write_without_sync(path, &[MAGIC, blake3::hash(image).as_bytes(), image].concat())
}

/// Machine code in a device's context.
pub(super) struct Module(CUmodule);

// SAFETY: driver handles may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads an image into the device's context, which is the current one.
    fn load(device: &Device, image: &[u8]) -> Result<Self, CudaError> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: a whole image, as the compiler made it; the pointers are valid for the call.
        let code = unsafe { sys::cuModuleLoadData(&raw mut raw, image.as_ptr().cast()) };
        device.check_room("cuModuleLoadData", 0, code)?;
        Ok(Self(raw))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded in `load` and unloaded once, by the device that has entered its context.
        unsafe { sys::cuModuleUnload(self.0) };
    }
}

/// A function that can be launched.
#[derive(Clone)]
pub struct Kernel {
    name: &'static str,
    function: CUfunction,
    device: Arc<Device>,
}

// SAFETY: driver handles may be used from any thread; the device keeps the module loaded.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// How many threads a launch has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaunchShape {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory beyond those the kernel declares.
    pub shared_bytes: u32,
}

impl LaunchShape {
    /// Blocks in one dimension.
    pub fn linear(blocks: u32, threads: u32) -> Self {
        Self { grid: [blocks, 1, 1], threads, shared_bytes: 0 }
    }
}

/// An argument of a launch: numbers, and structs laid out as in C.
#[derive(Clone, Copy)]
pub struct Argument<'a>(*mut c_void, PhantomData<&'a ()>);

impl<'a> Argument<'a> {
    /// The argument at `value`, whose type is that of the kernel's parameter.
    pub fn new<T: Copy>(value: &'a T) -> Self {
        Self(std::ptr::from_ref(value).cast_mut().cast(), PhantomData)
    }
}

impl Kernel {
    pub(super) fn of(device: &Arc<Device>, module: &Module, name: &'static str) -> Result<Self, CudaError> {
        let mut function = std::ptr::null_mut();
        let text = CString::new(name).unwrap_or_default();
        device.enter()?;
        // SAFETY: the module is loaded, the name a terminated string, the pointer valid for the call.
        let code = unsafe { sys::cuModuleGetFunction(&raw mut function, module.0, text.as_ptr()) };
        check("cuModuleGetFunction", code)?;
        Ok(Self { name, function, device: Arc::clone(device) })
    }

    /// Queues a launch. Nothing is launched for an empty grid.
    ///
    /// # Safety
    /// Arguments have the types of the kernel's parameters; what they point at stays alive, unused by others, and large
    /// enough for what the kernel does with it, until the stream was synchronized.
    pub unsafe fn launch(
        &self,
        stream: &Stream,
        shape: LaunchShape,
        arguments: &[Argument<'_>],
    ) -> Result<(), CudaError> {
        let [x, y, z] = shape.grid;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        if y > 65_535 || z > 65_535 || i32::try_from(x).is_err() || shape.threads == 0 || shape.threads > 1024
        {
            let what = format!("a grid of {x}×{y}×{z} blocks of {} threads", shape.threads);
            return Err(CudaError::Argument { operation: self.name, what });
        }
        if !Arc::ptr_eq(stream.device(), &self.device) {
            let what = format!("loaded on {:?}, launched on {:?}", self.device, stream.device());
            return Err(CudaError::Argument { operation: self.name, what });
        }
        self.device.enter_for(Asked::Launch)?;
        if shape.shared_bytes > PLAIN_SHARED_BYTES {
            let which = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is loaded.
            let code = unsafe { sys::cuFuncSetAttribute(self.function, which, shape.shared_bytes as i32) };
            check("cuFuncSetAttribute", code)?;
        }
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(|a| a.0).collect();
        // SAFETY: the caller's promise; the driver copies arguments before it returns.
        let code = unsafe {
            sys::cuLaunchKernel(
                self.function,
                x,
                y,
                z,
                shape.threads,
                1,
                1,
                shape.shared_bytes,
                stream.raw(),
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.device.check_room(self.name, 0, code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_files_are_no_images() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.cubin");
        assert_eq!(read(&path), None);
        write(&path, b"image").unwrap();
        assert_eq!(read(&path).as_deref(), Some(&b"image"[..]));
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            atomic::write_without_sync(&path, &whole[..cut]).unwrap();
            assert_eq!(read(&path), None, "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            atomic::write_without_sync(&path, &changed).unwrap();
            assert_eq!(read(&path), None, "changed at {at}");
        }
        assert_eq!(CubinCache::new(dir.path().to_path_buf()).size().0, 1);
    }
}
