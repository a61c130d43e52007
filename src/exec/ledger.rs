//! The append-only ledger: one JSON object a line, one file a run.
//!
//! Appends happen under an exclusive file lock and end with a newline; a kill can leave one torn line, which counts as
//! not written. A `done` line carries the digest of its output, so a damaged line is work to do again, never a result.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::lease::{LEASE_SECONDS, Lease, Owner};
use super::unit::{Flow, UnitKey};
use crate::base::clock;
use crate::base::digest::Digest;
use crate::record::{Classified, Failure, FailureClass};

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
    /// Whether it was copied from the shared ledger.
    pub reused: bool,
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

#[derive(Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Entry {
    Claim {
        key: UnitKey,
        unit: String,
        owner: Owner,
        expires: u64,
    },
    Release {
        key: UnitKey,
        owner: Owner,
    },
    Failed {
        key: UnitKey,
        unit: String,
        failure: Failure,
        at: String,
    },
    Done {
        key: UnitKey,
        unit: String,
        output: Value,
        digest: Digest,
        flow: Flow,
        elapsed_s: f64,
        reused: bool,
    },
}

#[derive(Default)]
struct State {
    read_up_to: u64,
    done: BTreeMap<UnitKey, Done>,
    leases: BTreeMap<UnitKey, Lease>,
    damaged_lines: usize,
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
        self.locked(|file, state| {
            if let Some(done) = state.done.get(key) {
                return Ok(Claim::Done(done.clone()));
            }
            if let Some(lease) = state.leases.get(key)
                && lease.owner != self.owner
                && !lease.is_stale()
            {
                return Ok(Claim::Busy(lease.owner.clone()));
            }
            self.append(file, &self.claim_entry(key, unit))?;
            Ok(Claim::Granted)
        })
    }

    /// Renews the lease of a unit that this process owns.
    pub fn renew(&self, key: &UnitKey, unit: &str) -> Result<(), LedgerError> {
        self.locked(|file, _| self.append(file, &self.claim_entry(key, unit)))
    }

    /// Records a unit as done.
    pub fn finish(&self, key: &UnitKey, unit: &str, done: &Done) -> Result<(), LedgerError> {
        let json = |source| LedgerError::Json { path: self.path.clone(), source };
        let entry = Entry::Done {
            key: key.clone(),
            unit: unit.to_owned(),
            digest: Digest::of_json(&done.output).map_err(json)?,
            output: done.output.clone(),
            flow: done.flow,
            elapsed_s: done.elapsed_s,
            reused: done.reused,
        };
        self.locked(|file, _| self.append(file, &entry))
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
        file.lock().map_err(io)?;
        let result = catch_up(file, state).map_err(io).and_then(|()| work(file, state));
        let caught_up = catch_up(file, state).map_err(io);
        file.unlock().map_err(io)?;
        caught_up?;
        result
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
    for line in bytes[..complete].split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        match serde_json::from_slice::<Entry>(line) {
            Ok(entry) => apply(state, entry),
            Err(_) => state.damaged_lines += 1,
        }
    }
    Ok(())
}

fn apply(state: &mut State, entry: Entry) {
    match entry {
        Entry::Claim { key, owner, expires, .. } => {
            state.leases.insert(key, Lease { owner, expires });
        }
        Entry::Release { key, owner } => {
            if state.leases.get(&key).is_some_and(|l| l.owner == owner) {
                state.leases.remove(&key);
            }
        }
        Entry::Failed { .. } => {}
        Entry::Done { key, output, digest, flow, elapsed_s, reused, .. } => {
            if Digest::of_json(&output).is_ok_and(|d| d == digest) {
                state.leases.remove(&key);
                state.done.insert(key, Done { output, flow, elapsed_s, reused });
            } else {
                state.damaged_lines += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::unit::KeyBuilder;
    use super::*;

    fn key(name: &str) -> UnitKey {
        KeyBuilder::new("test/1").part("name", name).finish()
    }

    fn done(value: i64) -> Done {
        Done {
            output: serde_json::json!({ "value": value, "x": 0.1 }),
            flow: Flow::Continue,
            elapsed_s: 0.5,
            reused: false,
        }
    }

    #[test]
    fn done_survives_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.jsonl");
        let ledger = Ledger::open(&path).unwrap();
        assert_eq!(ledger.claim(&key("a"), "a").unwrap(), Claim::Granted);
        ledger.finish(&key("a"), "a", &done(7)).unwrap();
        drop(ledger);
        let again = Ledger::open(&path).unwrap();
        assert_eq!(again.claim(&key("a"), "a").unwrap(), Claim::Done(done(7)));
        assert_eq!(again.done(&key("b")).unwrap(), None);
    }

    #[test]
    fn torn_and_damaged_lines_are_work_to_do_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.jsonl");
        let ledger = Ledger::open(&path).unwrap();
        ledger.finish(&key("a"), "a", &done(7)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        // A changed result, then a line cut off in the middle.
        let damaged = text.replace(":7", ":8") + &text[..text.len() / 2];
        std::fs::write(&path, damaged).unwrap();
        let again = Ledger::open(&path).unwrap();
        assert_eq!(again.done(&key("a")).unwrap(), None);
        again.finish(&key("b"), "b", &done(1)).unwrap();
        let third = Ledger::open(&path).unwrap();
        assert_eq!(third.done(&key("b")).unwrap(), Some(done(1)));
        assert_eq!(third.damaged_lines(), 2);
    }

    #[test]
    fn a_living_owner_keeps_its_unit_and_a_dead_one_loses_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.jsonl");
        let entry = |owner: Owner, expires: u64| {
            let e = Entry::Claim { key: key("a"), unit: "a".to_owned(), owner, expires };
            serde_json::to_string(&e).unwrap() + "\n"
        };
        let later = clock::unix_seconds() + 60;
        let elsewhere = Owner { host: "elsewhere".to_owned(), pid: 1, started: 1 };
        let dead = Owner { started: 1, ..Owner::current() };
        let cases = [(elsewhere.clone(), later, true), (elsewhere, 1, false), (dead, later, false)];
        for (owner, expires, busy) in cases {
            std::fs::write(&path, entry(owner.clone(), expires)).unwrap();
            let claim = Ledger::open(&path).unwrap().claim(&key("a"), "a").unwrap();
            assert_eq!(claim, if busy { Claim::Busy(owner) } else { Claim::Granted });
        }
    }

    #[test]
    fn two_handles_see_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.jsonl");
        let (one, two) = (Ledger::open(&path).unwrap(), Ledger::open(&path).unwrap());
        one.finish(&key("a"), "a", &done(1)).unwrap();
        assert_eq!(two.done(&key("a")).unwrap(), Some(done(1)));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("ledger.jsonl");
            std::fs::write(&path, bytes).unwrap();
            let ledger = Ledger::open(&path).unwrap();
            ledger.finish(&key("a"), "a", &done(3)).unwrap();
            proptest::prop_assert_eq!(Ledger::open(&path).unwrap().done(&key("a")).unwrap(), Some(done(3)));
        }
    }
}
