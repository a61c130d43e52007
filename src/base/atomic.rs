//! Artifacts appear under their final name only when complete: temporary name, sync, rename.
//!
//! The temporary file lies in the target's own directory, because a rename is atomic only within one file system.
//! While it is written it is locked (`flock`): a temporary file nobody holds is what a killed process left, and
//! [`remove_leftovers`] may delete it while other processes go on writing theirs.

use std::fs::{File, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

const TEMP_PREFIX: &str = ".day0-";
const TEMP_SUFFIX: &str = ".part";

/// A file being written that is invisible under its final name until [`AtomicFile::commit`].
#[derive(Debug)]
pub struct AtomicFile {
    inner: BufWriter<NamedTempFile>,
    path: PathBuf,
    write_back: Option<WriteBack>,
}

/// How far a file was written, and how far its storage was begun, in bytes.
#[derive(Debug, Default)]
struct WriteBack {
    written: u64,
    begun: u64,
}

/// Storage is begun in steps of this many bytes.
const WRITE_BACK_BYTES: u64 = 32 << 20;
/// Larger writes bypass the buffer.
const BUFFER_BYTES: usize = 64 << 10;

impl AtomicFile {
    /// Opens a temporary file beside `path`, creating the parent directories.
    pub fn create(path: &Path) -> io::Result<Self> {
        let parent = parent_dir(path);
        std::fs::create_dir_all(parent)?;
        let temp = tempfile::Builder::new().prefix(TEMP_PREFIX).suffix(TEMP_SUFFIX).tempfile_in(parent)?;
        match temp.as_file().try_lock() {
            // A file system without locks has no leftovers removed either: see `remove_leftovers`.
            Ok(()) | Err(TryLockError::Error(_)) => {}
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::ResourceBusy.into()),
        }
        let inner = BufWriter::with_capacity(BUFFER_BYTES, temp);
        Ok(Self { inner, path: path.to_path_buf(), write_back: None })
    }

    /// Whether storage of what is written begins at once, without waiting for it; a later sync is shorter then.
    pub fn set_early_write_back(&mut self, early: bool) {
        self.write_back = early.then(WriteBack::default);
    }

    /// Syncs the data to storage and gives the file its final name, replacing what was there.
    pub fn commit(self) -> io::Result<()> {
        let path = self.path.clone();
        self.persist(true)?;
        sync_dir(parent_dir(&path))
    }

    /// Gives the file its final name, replacing what was there. After a crash of the system the name may stand for less
    /// than was written: for files that are synced later, or verified before they are used.
    pub fn commit_without_sync(self) -> io::Result<()> {
        self.persist(false)
    }

    fn persist(self, sync: bool) -> io::Result<()> {
        let temp = self.inner.into_inner().map_err(io::IntoInnerError::into_error)?;
        set_default_mode(temp.as_file())?;
        if sync {
            temp.as_file().sync_all()?;
        }
        temp.persist(&self.path).map_err(|e| e.error)?;
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        if let Some(progress) = &mut self.write_back {
            progress.written += n as u64;
            if progress.written - progress.begun >= WRITE_BACK_BYTES {
                begin_write_back(self.inner.get_ref().as_file(), progress.begun, progress.written);
                progress.begun = progress.written;
            }
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Asks the system to begin storing part of a file. A system that cannot only makes a later sync longer.
#[cfg(target_os = "linux")]
fn begin_write_back(file: &File, begin: u64, end: u64) {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open for the whole call, which touches no memory of this process.
    unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            begin as i64,
            (end - begin) as i64,
            libc::SYNC_FILE_RANGE_WRITE,
        );
    }
}

#[cfg(not(target_os = "linux"))]
fn begin_write_back(_: &File, _: u64, _: u64) {}

/// Writes `bytes` to `path` atomically, without waiting for storage ([`AtomicFile::commit_without_sync`]).
pub fn write_without_sync(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes)?;
    file.commit_without_sync()
}

/// Writes `bytes` to `path` atomically.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes)?;
    file.commit()
}

/// Deletes a file; one that is not there is as gone as it should be.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether `name` is what [`AtomicFile`] calls a file that is not complete.
pub fn is_temporary(name: &std::ffi::OsStr) -> bool {
    name.to_str().is_some_and(|name| name.starts_with(TEMP_PREFIX) && name.ends_with(TEMP_SUFFIX))
}

/// Deletes the temporary files below `dir` that killed processes left. Those being written stay.
pub fn remove_leftovers(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            remove_leftovers(&entry.path())?;
        } else if kind.is_file() && is_temporary(&entry.file_name()) {
            match remove_leftover(&entry.path()) {
                // Its writer finished or gave up meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done?,
            }
        }
    }
    Ok(())
}

fn remove_leftover(path: &Path) -> io::Result<()> {
    match File::open(path)?.try_lock() {
        Ok(()) => std::fs::remove_file(path),
        Err(TryLockError::WouldBlock | TryLockError::Error(_)) => Ok(()),
    }
}

/// A directory being filled that gets its final name only on [`StagingDir::commit`].
///
/// The staging directory is `<name>.partial` beside the target. It survives a kill, so that a resumed run can keep
/// the files it holds.
#[derive(Debug)]
pub struct StagingDir {
    staging: PathBuf,
    target: PathBuf,
}

impl StagingDir {
    /// Opens (or reopens) the staging directory of `target`, without what killed writers left half-written in it.
    pub fn open(target: &Path) -> io::Result<Self> {
        let staging = staging_path(target);
        std::fs::create_dir_all(&staging)?;
        remove_leftovers(&staging)?;
        Ok(Self { staging, target: target.to_path_buf() })
    }

    /// Where files are written meanwhile.
    pub fn path(&self) -> &Path {
        &self.staging
    }

    /// As [`Self::commit`], for files that need not survive a crash of the system.
    pub fn commit_without_sync(self) -> io::Result<()> {
        remove_leftovers(&self.staging)?;
        std::fs::rename(&self.staging, &self.target)
    }

    /// Renames the staging directory to its final name. The target must not exist or be an empty directory.
    pub fn commit(self) -> io::Result<()> {
        remove_leftovers(&self.staging)?;
        sync_dir(&self.staging)?;
        std::fs::rename(&self.staging, &self.target)?;
        sync_dir(parent_dir(&self.target))
    }
}

/// Waits until the files directly in `dir` are stored.
pub fn sync_files(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_dir(dir)
}

/// Name of the staging directory of `target`.
pub fn staging_path(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    target.with_file_name(name)
}

/// Makes a rename in `dir` durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn parent_dir(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Temporary files are created private (0600); artifacts are for everybody the umask allows.
#[cfg(unix)]
fn set_default_mode(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn set_default_mode(_: &File) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uncommitted_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn write_replaces_whole_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/a.json");
        write(&path, b"long content").unwrap();
        write(&path, b"short").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"short");
    }

    #[test]
    fn leftovers_go_and_files_being_written_stay() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("deep");
        let mut file = AtomicFile::create(&deep.join("a.json")).unwrap();
        std::fs::write(deep.join(".day0-x1y2z3.part"), "half").unwrap();
        std::fs::write(deep.join(".day0-notes"), "not ours").unwrap();
        remove_leftovers(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(&deep).unwrap().count(), 2);
        file.write_all(b"whole").unwrap();
        file.commit().unwrap();
        assert_eq!(std::fs::read(deep.join("a.json")).unwrap(), b"whole");
    }

    #[test]
    fn staging_dir_commits_without_leftovers() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let staging = StagingDir::open(&target).unwrap();
        std::fs::write(staging.path().join(".day0-dead.part"), "half").unwrap();
        staging.commit().unwrap();
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0);
    }

    #[test]
    fn staging_dir_is_kept_until_commit() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let staging = StagingDir::open(&target).unwrap();
        write(&staging.path().join("x"), b"1").unwrap();
        drop(staging);
        assert!(!target.exists());
        StagingDir::open(&target).unwrap().commit().unwrap();
        assert_eq!(std::fs::read(target.join("x")).unwrap(), b"1");
    }
}
