//! Digests of files, remembered between runs for large ones.
//!
//! A remembered digest is used only while inode, size, mtime and ctime are what they were (the number of a device differs
//! between the clients of one file server), and is neither stored nor believed for a file that changed within the last two seconds: file systems with coarse time stamps
//! could not tell a later change apart.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::error::CheckpointError;
use crate::base::digest::Digest;
use crate::base::{atomic, env_vars};

/// Smaller files are hashed anew: at 4.7 GB/s that takes less time than a look into the cache.
const REMEMBER_FROM_BYTES: u64 = 4 << 20;
/// Time stamps younger than this are not trusted.
const SETTLE_TIME: Duration = Duration::from_secs(2);

/// What identifies one state of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileState {
    path: PathBuf,
    size_bytes: u64,
    mtime_ns: u128,
    ctime_ns: i128,
    inode: u64,
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    state: FileState,
    digest: Digest,
}

/// The digests of several files of one directory, in the order of `names`.
pub fn of_files(dir: &Path, names: &[&str]) -> Result<Vec<Digest>, CheckpointError> {
    let store = env_vars::cache_dir().join("digests");
    names
        .par_iter()
        .map(|name| {
            let path = dir.join(name);
            of_file_in(&path, &store).map_err(|source| CheckpointError::Read { path, source })
        })
        .collect()
}

/// The digest of one file, remembered in the cache directory when the file is large.
pub fn of_file(path: &Path) -> std::io::Result<Digest> {
    of_file_in(path, &env_vars::cache_dir().join("digests"))
}

fn of_file_in(path: &Path, store: &Path) -> std::io::Result<Digest> {
    let before = state(path)?;
    let Some(before) = before.filter(|s| s.size_bytes >= REMEMBER_FROM_BYTES) else {
        return Digest::of_file(path);
    };
    let place = store.join(format!("{}.json", key(&before).short(32)));
    if let Some(digest) = recall(&place, &before) {
        return Ok(digest);
    }
    let digest = Digest::of_file(path)?;
    let settled = state(path)?.is_some_and(|after| after == before && is_settled(&before));
    if settled && let Ok(text) = serde_json::to_vec(&Remembered { state: before, digest: digest.clone() }) {
        // The cache only saves time: one that cannot be written (read-only, full) is not an error.
        let _ = atomic::write(&place, &text);
    }
    Ok(digest)
}

fn recall(place: &Path, now: &FileState) -> Option<Digest> {
    let remembered: Remembered = serde_json::from_slice(&std::fs::read(place).ok()?).ok()?;
    (remembered.state == *now && is_settled(now)).then_some(remembered.digest)
}

fn key(state: &FileState) -> Digest {
    Digest::of(state.path.as_os_str().as_encoded_bytes())
}

/// Whether both time stamps lie at least [`SETTLE_TIME`] in the past.
fn is_settled(state: &FileState) -> bool {
    let latest_ns = (state.mtime_ns as i128).max(state.ctime_ns);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    latest_ns + (SETTLE_TIME.as_nanos() as i128) < now.as_nanos() as i128
}

#[cfg(unix)]
fn state(path: &Path) -> std::io::Result<Option<FileState>> {
    use std::os::unix::fs::MetadataExt;
    let path = path.canonicalize()?;
    let meta = std::fs::metadata(&path)?;
    let modified = meta.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(Some(FileState {
        size_bytes: meta.len(),
        mtime_ns: modified.as_nanos(),
        ctime_ns: i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec()),
        inode: meta.ino(),
        path,
    }))
}

/// Without inode and ctime a digest is never remembered.
#[cfg(not(unix))]
fn state(_: &Path) -> std::io::Result<Option<FileState>> {
    Ok(None)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests write their own files")]
mod tests {
    use super::*;

    fn big(path: &Path, byte: u8) {
        std::fs::write(path, vec![byte; REMEMBER_FROM_BYTES as usize]).unwrap();
    }

    #[test]
    fn fresh_files_are_not_remembered_and_old_ones_are() {
        let dir = tempfile::tempdir().unwrap();
        let (path, store) = (dir.path().join("w"), dir.path().join("store"));
        big(&path, 1);
        let first = of_file_in(&path, &store).unwrap();
        assert!(!store.exists(), "mtime is now: nothing may be stored");
        std::thread::sleep(SETTLE_TIME + Duration::from_millis(200));
        assert_eq!(of_file_in(&path, &store).unwrap(), first);
        assert_eq!(std::fs::read_dir(&store).unwrap().count(), 1);
        assert_eq!(of_file_in(&path, &store).unwrap(), first);
        big(&path, 2);
        assert_ne!(of_file_in(&path, &store).unwrap(), first, "the same size, another content");
    }

    #[test]
    fn remembered_digest_is_used_only_for_the_same_state() {
        let dir = tempfile::tempdir().unwrap();
        let (path, store) = (dir.path().join("w"), dir.path().join("store"));
        big(&path, 1);
        std::thread::sleep(SETTLE_TIME + Duration::from_millis(200));
        let real = of_file_in(&path, &store).unwrap();
        let place = std::fs::read_dir(&store).unwrap().next().unwrap().unwrap().path();
        let mut kept: Remembered = serde_json::from_slice(&std::fs::read(&place).unwrap()).unwrap();
        kept.digest = Digest::of(b"planted");
        std::fs::write(&place, serde_json::to_vec(&kept).unwrap()).unwrap();
        assert_eq!(of_file_in(&path, &store).unwrap(), Digest::of(b"planted"), "the cache is read");
        kept.state.ctime_ns -= 1;
        std::fs::write(&place, serde_json::to_vec(&kept).unwrap()).unwrap();
        assert_eq!(of_file_in(&path, &store).unwrap(), real);
    }
}
