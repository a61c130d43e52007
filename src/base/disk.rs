//! Space on the file system of a path.

use std::io;
use std::path::Path;

/// Bytes that this process may still write where `path` lies or will lie; `None` where the system does not tell. A file
/// system mounted read-only is an error.
#[cfg(unix)]
pub fn free_bytes(path: &Path) -> io::Result<Option<u64>> {
    use std::os::unix::ffi::OsStrExt;
    let whole = std::path::absolute(path)?;
    let existing = whole.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let name = std::ffi::CString::new(existing.as_os_str().as_bytes())?;
    // SAFETY: all-zero bytes are a valid statvfs.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `name` ends with a zero byte and `found` is a statvfs to be filled; both live for the whole call.
    if unsafe { libc::statvfs(name.as_ptr(), &raw mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if found.f_flag & libc::ST_RDONLY != 0 {
        return Err(io::Error::from_raw_os_error(libc::EROFS));
    }
    // Systems without storage behind them, like /proc, count no blocks.
    if found.f_blocks == 0 {
        return Ok(None);
    }
    // The fields are narrower on other systems.
    Ok(u64::try_from(found.f_bavail as u128 * found.f_frsize as u128).ok())
}

#[cfg(not(unix))]
pub fn free_bytes(_: &Path) -> io::Result<Option<u64>> {
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_to_be_made_is_where_its_parent_is() {
        let dir = tempfile::tempdir().unwrap();
        let free = free_bytes(&dir.path().join("not/there/yet")).unwrap();
        assert!(free.is_none_or(|bytes| bytes > 0));
    }
}
