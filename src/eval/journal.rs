//! The item ledger of an evaluation: every item that has an outcome, a line each, appended while scoring goes on.
//!
//! A killed evaluation goes on where it stopped: an item with a line is not scored again, whatever wave it belongs to.
//! A line counts only for the arm and the requests it was made with, and only if it is whole.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::prepared::{PreparedItem, PreparedTask};
use crate::base::digest::{Digest, DigestBuilder};
use crate::record::eval::ItemRecord;
use crate::record::score::EngineIdentity;

/// One line.
#[derive(Serialize, Deserialize)]
struct Line {
    /// Digest of arm, engine, task and requests.
    key: Digest,
    /// The outcome.
    item: ItemRecord,
    /// Digest of the outcome: a damaged line is work to do again, never a result.
    digest: Digest,
}

/// The name of the journal; a process that works beside others appends to `items-<its own name>.jsonl`, because not
/// every shared file system appends atomically.
pub const JOURNAL: &str = "items";

/// The journals of all processes in the directory of `path`.
fn parts(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let Some(dir) = path.parent().filter(|dir| dir.is_dir()) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(JOURNAL) && name.ends_with(".jsonl") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The outcomes so far, in a file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    arm: Digest,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    done: HashMap<Digest, ItemRecord>,
}

impl Journal {
    /// Opens the journal at `path`, or begins it. `arm` identifies who answers and `engine` what it says of itself:
    /// outcomes of another arm or engine in the file are passed over.
    pub fn open(path: &Path, arm: &str, engine: &EngineIdentity) -> std::io::Result<Self> {
        let (mut text, mut torn) = (Vec::new(), false);
        for part in parts(path)? {
            text.extend(std::fs::read(&part)?);
            torn |= part.file_name() == path.file_name() && text.last().is_some_and(|last| *last != b'\n');
            text.push(b'\n');
        }
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        if torn {
            // A kill left half a line; what follows must not become part of it.
            file.write_all(b"\n")?;
        }
        let lines = text.split(|b| *b == b'\n').filter_map(|l| serde_json::from_slice::<Line>(l).ok());
        let whole = lines.filter(|l| Digest::of_json(&l.item).is_ok_and(|d| d == l.digest));
        let done = whole.map(|l| (l.key, l.item)).collect();
        let mut builder = DigestBuilder::default();
        builder.field(arm.as_bytes());
        let engine = serde_json::to_vec(engine).map_err(std::io::Error::other)?;
        builder.field(&engine);
        Ok(Self { path: path.to_path_buf(), arm: builder.finish(), state: Mutex::new(State { file, done }) })
    }

    /// The outcome of an item, if it is known.
    pub fn get(&self, task: &PreparedTask, item: &PreparedItem) -> Option<ItemRecord> {
        let key = self.key(task, item);
        self.state.lock().unwrap_or_else(PoisonError::into_inner).done.get(&key).cloned()
    }

    /// Appends the outcome of an item. Outcomes that a retry may change are left out: such an item stays pending.
    pub fn put(&self, task: &PreparedTask, item: &PreparedItem, outcome: &ItemRecord) -> std::io::Result<()> {
        if outcome.error.is_some() {
            return Ok(());
        }
        let key = self.key(task, item);
        let digest = Digest::of_json(outcome).map_err(std::io::Error::other)?;
        let line = Line { key: key.clone(), item: outcome.clone(), digest };
        let mut text = serde_json::to_vec(&line).map_err(std::io::Error::other)?;
        text.push(b'\n');
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.file.write_all(&text)?;
        state.done.insert(key, line.item);
        Ok(())
    }

    /// Removes the file and those of other processes beside it: a finished evaluation holds all outcomes in its record.
    pub fn remove(path: &Path) -> std::io::Result<()> {
        for part in parts(path)? {
            match std::fs::remove_file(part) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn key(&self, task: &PreparedTask, item: &PreparedItem) -> Digest {
        let mut builder = DigestBuilder::default();
        for part in [&self.arm, &task.digest, &item.prompt_digest, &item.token_digest] {
            builder.field(part.as_str().as_bytes());
        }
        builder.field(&(item.doc_id as u64).to_le_bytes());
        builder.finish()
    }
}
