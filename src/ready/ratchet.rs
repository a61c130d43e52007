//! Reads and writes `quality-ratchet.json`.

use std::path::Path;

use crate::base::json;
use crate::gate::ratchet::validate;
use crate::record::Failure;
use crate::record::ratchet::Ratchet;

/// Where the ratchet lies unless told otherwise.
pub const RATCHET_FILE: &str = "quality-ratchet.json";

/// Reads and validates a ratchet; `None` where there is no file (document 004, `loadQualityRatchet`).
pub fn load(path: &Path) -> Result<Option<Ratchet>, Failure> {
    if !path.exists() {
        return Ok(None);
    }
    let ratchet: Ratchet = json::read(path)?;
    validate(&ratchet).map_err(|problem| Failure::config(format!("{}: {problem}", path.display())))?;
    Ok(Some(ratchet))
}

/// Writes a ratchet.
pub fn store(path: &Path, ratchet: &Ratchet) -> Result<(), Failure> {
    Ok(json::write(path, ratchet)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(text: &str) -> Result<Option<Ratchet>, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(RATCHET_FILE);
        crate::base::atomic::write(&path, text.as_bytes()).unwrap();
        load(&path)
    }

    /// Document 004, "Quality Ratchet": the file as it stands there.
    const DOCUMENT: &str = r#"{
      "version": 1,
      "updatedAt": "2026-03-30T00:00:00Z",
      "updatedBy": "SUP-456",
      "thresholds": {
        "testCount": { "min": 847 },
        "testFailures": { "max": 0 },
        "typecheckErrors": { "max": 12 },
        "lintErrors": { "max": 34 }
      }
    }"#;

    /// Document 004, "Quality Ratchet": the committed file as the document prints it.
    #[test]
    fn the_documents_file_is_read_and_written_with_the_same_values() {
        let ratchet = loaded(DOCUMENT).unwrap().unwrap();
        assert_eq!(ratchet.thresholds["testCount"].min, Some(847.0));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(RATCHET_FILE);
        store(&path, &ratchet).unwrap();
        let written: serde_json::Value = json::read(&path).unwrap();
        assert_eq!(written, serde_json::from_str::<serde_json::Value>(DOCUMENT).unwrap());
        assert_eq!(load(&dir.path().join("none.json")).unwrap(), None);
    }

    #[test]
    fn mistakes_in_the_file_name_file_and_place() {
        for (from, to, says) in [
            ("\"max\": 12", "\"max\": \"12\"", "line 8"),
            ("\"max\": 12", "\"max\": 12, \"min\": 1", "typecheckErrors: both"),
            ("\"max\": 12", "", "typecheckErrors: neither"),
            ("\"max\": 12", "\"min\": 12", "expected max"),
            ("\"max\": 12", "\"maximum\": 12", "maximum"),
            ("typecheckErrors", "typecheckError", "did you mean 'typecheckErrors'?"),
            ("\"version\": 1", "\"version\": 2", "version is 2"),
            ("\"version\": 1", "\"version\": \"1\"", "line 2"),
            ("}", "", "unexpected content"),
        ] {
            let failure = loaded(&DOCUMENT.replacen(from, to, 1)).unwrap_err();
            let text = format!("{failure} {}", failure.hint.clone().unwrap_or_default());
            assert!(text.contains(RATCHET_FILE) && text.contains(says), "{to}: {text}");
        }
    }
}
