//! The append-only ledger: one JSON object a line, one file a run.
//!
//! Appends happen under an exclusive file lock and end with a newline; a kill can leave one torn line, which counts as
//! not written. A `done` line carries the digest of its output, so a damaged line is work to do again, never a result.
//!
//! # Shared file systems
//!
//! Everything rests on one exclusive lock a file (`flock`) and on renames within a directory, both of which hold
//! between nodes on
//!
//! - NFS 3 and 4: Linux sends `flock` to the server as a byte-range lock (unless mounted `local_lock=flock` or
//!   `nolock`), and taking it discards cached pages, so a reader under the lock sees what the last writer wrote.
//! - Lustre mounted with `-o flock`. With `-o localflock` a lock holds on one node only: two nodes may then own one
//!   unit, which costs work but no correctness (equal keys, equal outputs), and lines may overwrite each other, which
//!   makes their units run again. A mount without either refuses locks, and so does the ledger.
//! - GPFS and BeeGFS with locks enabled.
//!
//! A lease is a time, so clocks may differ between nodes by less than its length minus the heartbeat
//! ([`super::lease::LEASE_SECONDS`]). A compaction replaces the file by rename; who has the old one open notices under
//! the lock and opens the new one.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use super::entry::{Entry, State};
use super::history::UnitHistory;
use super::lease::{LEASE_SECONDS, Owner};
use super::unit::{Flow, UnitKey};
use crate::base::digest::Digest;
use crate::base::{atomic, clock};
use crate::record::{Classified, Failure, FailureClass};

/// A ledger with fewer obsolete bytes than this is left as it is.
const COMPACT_BYTES: u64 = 64 << 10;

/// A ledger that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// I/O failed.
    #[error("{}: the ledger cannot be read or written", path.display())]
    Io {
        /// The ledger.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An entry cannot be serialized.
    #[error("{}: an entry cannot be written as JSON", path.display())]
    Json {
        /// The ledger.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

impl Classified for LedgerError {
    fn failure_class(&self) -> FailureClass {
        match self {
            Self::Io { source, .. } => Failure::io("", source).class,
            Self::Json { .. } => FailureClass::Unknown,
        }
    }
}

/// A finished unit as the ledger holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    /// Its output.
    pub output: Value,
    /// What followed.
    pub flow: Flow,
    /// Duration in seconds; 0 when reused.
    pub elapsed_s: f64,
    /// Peak resident memory in bytes so far of the process that ran it, if known; `None` when reused.
    pub peak_memory_bytes: Option<u64>,
    /// Whether it was copied from the shared ledger.
    pub reused: bool,
    /// Digest of the outputs it was made of; `None` where those are the same under the same key.
    pub inputs: Option<Digest>,
}

/// Answer to a claim.
#[derive(Debug, Clone, PartialEq)]
pub enum Claim {
    /// The unit is done.
    Done(Done),
    /// The unit is yours until the lease ends.
    Granted,
    /// Another process owns it.
    Busy(Owner),
}

/// What a ledger says at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// What became of every unit.
    pub units: BTreeMap<UnitKey, UnitHistory>,
    /// Units that a living process owns.
    pub running: BTreeMap<UnitKey, Owner>,
}

/// An open ledger. Cheap to share; safe to use from several threads and processes.
pub struct Ledger {
    path: PathBuf,
    owner: Owner,
    inner: Mutex<(File, State)>,
    /// Whether every entry is stored before work goes on.
    sync: bool,
}

impl Ledger {
    /// Opens or creates the ledger at `path`.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let io = |source| LedgerError::Io { path: path.to_path_buf(), source };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(io)?;
        }
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(io)?;
        let ledger = Self {
            path: path.to_path_buf(),
            owner: Owner::current(),
            inner: Mutex::new((file, State::default())),
            sync: true,
        };
        ledger.locked(|_, _| Ok(()))?;
        Ok(ledger)
    }

    /// The same ledger, whose entries a crash of the system (not of the process) may lose: for work whose results are
    /// verified before they are used again. Waiting for storage would wait for all data under way to it.
    #[must_use]
    pub fn without_sync(mut self) -> Self {
        self.sync = false;
        self
    }

    /// The finished unit with this key, if the ledger holds one.
    pub fn done(&self, key: &UnitKey) -> Result<Option<Done>, LedgerError> {
        self.locked(|_, state| Ok(state.done.get(key).cloned()))
    }

    /// Asks for a unit: it is done, granted to this process, or owned by a living other.
    pub fn claim(&self, key: &UnitKey, unit: &str) -> Result<Claim, LedgerError> {
        self.locked(|file, state| match state.done.get(key) {
            Some(done) => Ok(Claim::Done(done.clone())),
            None => self.grant(file, state, key, unit),
        })
    }

    /// Asks for a unit whose result, if it has one, no longer holds.
    pub fn claim_again(&self, key: &UnitKey, unit: &str) -> Result<Claim, LedgerError> {
        self.locked(|file, state| self.grant(file, state, key, unit))
    }

    fn grant(&self, file: &mut File, state: &State, key: &UnitKey, unit: &str) -> Result<Claim, LedgerError> {
        if let Some(lease) = state.leases.get(key)
            && lease.owner != self.owner
            && !lease.is_stale()
        {
            return Ok(Claim::Busy(lease.owner.clone()));
        }
        self.append(file, &self.claim_entry(key, unit))?;
        Ok(Claim::Granted)
    }

    /// Renews the lease of a unit that this process owns. A unit that another process took over meanwhile is not taken
    /// back.
    pub fn renew(&self, key: &UnitKey, unit: &str) -> Result<(), LedgerError> {
        self.locked(|file, state| {
            if self.owns(state, key) { self.append(file, &self.claim_entry(key, unit)) } else { Ok(()) }
        })
    }

    /// Records a unit that was claimed as done. `false`: this process held no lease any more and another has taken the unit
    /// over, or finished it; that result counts, and nothing was recorded.
    pub fn finish(&self, key: &UnitKey, unit: &str, done: &Done) -> Result<bool, LedgerError> {
        let entry = self.done_entry(key, unit, done)?;
        self.locked(|file, state| {
            let is_taken = match state.leases.get(key) {
                Some(lease) => lease.owner != self.owner && !lease.is_stale(),
                None => state.done.contains_key(key),
            };
            if !is_taken {
                self.append(file, &entry)?;
            }
            Ok(!is_taken)
        })
    }

    /// Offers the result of a unit to others; it replaces what is there.
    pub fn publish(&self, key: &UnitKey, unit: &str, done: &Done) -> Result<(), LedgerError> {
        let entry = self.done_entry(key, unit, done)?;
        self.locked(|file, _| self.append(file, &entry))
    }

    fn done_entry(&self, key: &UnitKey, unit: &str, done: &Done) -> Result<Entry, LedgerError> {
        Entry::done(key, unit, done).map_err(|source| LedgerError::Json { path: self.path.clone(), source })
    }

    fn owns(&self, state: &State, key: &UnitKey) -> bool {
        state.leases.get(key).is_some_and(|lease| lease.owner == self.owner)
    }

    /// What a ledger says at this moment, read without a lock and without write access. `None`: there is none.
    pub fn snapshot(path: &Path) -> Result<Option<Snapshot>, LedgerError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LedgerError::Io { path: path.to_path_buf(), source }),
        };
        let complete = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        let mut state = State::default();
        state.read(&bytes[..complete]);
        let living = state.leases.iter().filter(|(_, lease)| !lease.is_stale());
        let running = living.map(|(key, lease)| (key.clone(), lease.owner.clone())).collect();
        Ok(Some(Snapshot { units: state.history, running }))
    }

    /// What became of every unit so far, by key.
    pub fn history(&self) -> Result<BTreeMap<UnitKey, UnitHistory>, LedgerError> {
        self.locked(|_, state| Ok(state.history.clone()))
    }

    /// Drops the lines that say nothing any more (claims, renewals, results that were replaced) where they are more than
    /// half of a ledger worth the trouble. Safe while others work with it.
    pub fn compact(&self) -> Result<(), LedgerError> {
        let io = |source| LedgerError::Io { path: self.path.clone(), source };
        self.locked(|_, state| {
            if state.obsolete_bytes < COMPACT_BYTES || state.obsolete_bytes < state.read_up_to / 2 {
                return Ok(());
            }
            let text =
                state.compacted().map_err(|source| LedgerError::Json { path: self.path.clone(), source })?;
            atomic::write(&self.path, &text).map_err(io)
        })
    }

    /// Records that a unit failed and gives it back.
    pub fn fail(&self, key: &UnitKey, unit: &str, failure: &Failure) -> Result<(), LedgerError> {
        let failed = Entry::Failed {
            key: key.clone(),
            unit: unit.to_owned(),
            failure: failure.clone(),
            at: clock::now_iso8601(),
        };
        let release = Entry::Release { key: key.clone(), owner: self.owner.clone() };
        self.locked(|file, _| {
            self.append(file, &failed)?;
            self.append(file, &release)
        })
    }

    /// Lines that were not what a ledger holds: torn by a kill, or damaged.
    pub fn damaged_lines(&self) -> usize {
        self.guard().1.damaged_lines
    }

    fn claim_entry(&self, key: &UnitKey, unit: &str) -> Entry {
        Entry::Claim {
            key: key.clone(),
            unit: unit.to_owned(),
            owner: self.owner.clone(),
            expires: clock::unix_seconds() + LEASE_SECONDS,
        }
    }

    fn guard(&self) -> MutexGuard<'_, (File, State)> {
        // A panic while the lock was held leaves at worst an unread tail, which the next reader reads.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` under the file lock, on the state of everything written so far by anybody.
    fn locked<T>(
        &self,
        work: impl FnOnce(&mut File, &mut State) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let io = |source| LedgerError::Io { path: self.path.clone(), source };
        let mut guard = self.guard();
        let (file, state) = &mut *guard;
        self.lock(file, state).map_err(io)?;
        let result = catch_up(file, state).map_err(io).and_then(|()| work(file, state));
        let caught_up = catch_up(file, state).map_err(io);
        file.unlock().map_err(io)?;
        caught_up?;
        result
    }

    /// Locks the file that has the ledger's name: one that a compaction replaced is exchanged for the new one.
    fn lock(&self, file: &mut File, state: &mut State) -> std::io::Result<()> {
        loop {
            file.lock()?;
            let (held, named) = (file.metadata()?, std::fs::metadata(&self.path));
            match named {
                Ok(named) if (named.dev(), named.ino()) == (held.dev(), held.ino()) => return Ok(()),
                // A ledger that was removed is nobody's any more; what this process writes goes on in its own.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
                Ok(_) => {}
            }
            *file = OpenOptions::new().read(true).append(true).open(&self.path)?;
            *state = State::default();
        }
    }

    fn append(&self, file: &mut File, entry: &Entry) -> Result<(), LedgerError> {
        let io = |source| LedgerError::Io { path: self.path.clone(), source };
        let mut line = serde_json::to_vec(entry)
            .map_err(|source| LedgerError::Json { path: self.path.clone(), source })?;
        line.push(b'\n');
        let end = file.seek(SeekFrom::End(0)).map_err(io)?;
        if let Err(source) = repair_tail(file, end).and_then(|()| file.write_all(&line)) {
            return Err(io(source));
        }
        if self.sync { file.sync_data().map_err(io) } else { Ok(()) }
    }
}

/// Ends a torn last line, so that the next one starts fresh.
fn repair_tail(file: &mut File, end: u64) -> std::io::Result<()> {
    if end == 0 {
        return Ok(());
    }
    let mut last = [0];
    file.seek(SeekFrom::Start(end - 1))?;
    file.read_exact(&mut last)?;
    if last == *b"\n" { Ok(()) } else { file.write_all(b"\n") }
}

/// Reads the complete lines after what was read before.
fn catch_up(file: &mut File, state: &mut State) -> std::io::Result<()> {
    file.seek(SeekFrom::Start(state.read_up_to))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let complete = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    state.read_up_to += complete as u64;
    state.read(&bytes[..complete]);
    Ok(())
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
