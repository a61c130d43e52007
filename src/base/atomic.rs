//! Artifacts appear under their final name only when complete: temporary name, sync, rename.
//!
//! The temporary file lies in the target's own directory, because a rename is atomic only within one file system.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// A file being written that is invisible under its final name until [`AtomicFile::commit`].
#[derive(Debug)]
pub struct AtomicFile {
    inner: BufWriter<NamedTempFile>,
    path: PathBuf,
}

impl AtomicFile {
    /// Opens a temporary file beside `path`, creating the parent directories.
    pub fn create(path: &Path) -> io::Result<Self> {
        let parent = parent_dir(path);
        std::fs::create_dir_all(parent)?;
        let temp = tempfile::Builder::new().prefix(".day0-").suffix(".part").tempfile_in(parent)?;
        Ok(Self { inner: BufWriter::with_capacity(1 << 20, temp), path: path.to_path_buf() })
    }

    /// Syncs the data to storage and gives the file its final name, replacing what was there.
    pub fn commit(self) -> io::Result<()> {
        let temp = self.inner.into_inner().map_err(io::IntoInnerError::into_error)?;
        set_default_mode(temp.as_file())?;
        temp.as_file().sync_all()?;
        temp.persist(&self.path).map_err(|e| e.error)?;
        sync_dir(parent_dir(&self.path))
    }
}

impl Write for AtomicFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.inner.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes `bytes` to `path` atomically.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes)?;
    file.commit()
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
    /// Opens (or reopens) the staging directory of `target`.
    pub fn open(target: &Path) -> io::Result<Self> {
        let staging = staging_path(target);
        std::fs::create_dir_all(&staging)?;
        Ok(Self { staging, target: target.to_path_buf() })
    }

    /// Where files are written meanwhile.
    pub fn path(&self) -> &Path {
        &self.staging
    }

    /// Renames the staging directory to its final name. The target must not exist or be an empty directory.
    pub fn commit(self) -> io::Result<()> {
        sync_dir(&self.staging)?;
        std::fs::rename(&self.staging, &self.target)?;
        sync_dir(parent_dir(&self.target))
    }
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
