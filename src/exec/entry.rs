//! The lines of a ledger and the state they add up to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::history::UnitHistory;
use super::lease::{Lease, Owner};
use super::ledger::Done;
use super::unit::{Flow, UnitKey};
use crate::base::digest::Digest;
use crate::record::Failure;

/// One line.
#[derive(Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(super) enum Entry {
    /// A process takes a unit, or keeps it.
    Claim { key: UnitKey, unit: String, owner: Owner, expires: u64 },
    /// A process gives a unit back.
    Release { key: UnitKey, owner: Owner },
    /// A unit failed.
    Failed { key: UnitKey, unit: String, failure: Failure, at: String },
    /// A unit is done.
    Done {
        key: UnitKey,
        unit: String,
        output: Value,
        digest: Digest,
        flow: Flow,
        elapsed_s: f64,
        #[serde(default)]
        peak_memory_bytes: Option<u64>,
        reused: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        inputs: Option<Digest>,
    },
    /// What the lines that a compaction removed said of a unit.
    History { key: UnitKey, history: UnitHistory },
}

impl Entry {
    pub fn done(key: &UnitKey, unit: &str, done: &Done) -> serde_json::Result<Self> {
        let Done { output, flow, elapsed_s, peak_memory_bytes, reused, inputs } = done.clone();
        let (key, unit, digest) = (key.clone(), unit.to_owned(), Digest::of_json(&output)?);
        Ok(Self::Done { key, unit, output, digest, flow, elapsed_s, peak_memory_bytes, reused, inputs })
    }
}

/// What the lines read so far say.
#[derive(Default)]
pub(super) struct State {
    pub read_up_to: u64,
    pub done: BTreeMap<UnitKey, Done>,
    pub leases: BTreeMap<UnitKey, Lease>,
    pub history: BTreeMap<UnitKey, UnitHistory>,
    pub damaged_lines: usize,
    /// Bytes of lines that a compaction would drop.
    pub obsolete_bytes: u64,
}

impl State {
    /// Takes complete lines, as they follow each other in the file.
    pub fn read(&mut self, lines: &[u8]) {
        for line in lines.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            match serde_json::from_slice::<Entry>(line) {
                Ok(entry) => self.apply(entry, line.len() as u64),
                Err(_) => self.damaged_lines += 1,
            }
        }
    }

    fn apply(&mut self, entry: Entry, bytes: u64) {
        match entry {
            Entry::Claim { key, unit, owner, expires } => {
                self.obsolete_bytes += bytes;
                self.history_of(&key, &unit).claimed(&owner);
                self.leases.insert(key, Lease { owner, expires });
            }
            Entry::Release { key, owner } => {
                self.obsolete_bytes += bytes;
                if self.leases.get(&key).is_some_and(|l| l.owner == owner) {
                    self.leases.remove(&key);
                }
            }
            Entry::Failed { key, unit, failure, at } => self.history_of(&key, &unit).failed(failure, at),
            Entry::Done { key, unit, output, digest, flow, elapsed_s, peak_memory_bytes, reused, inputs } => {
                if Digest::of_json(&output).is_ok_and(|d| d == digest) {
                    self.leases.remove(&key);
                    let done = Done { output, flow, elapsed_s, peak_memory_bytes, reused, inputs };
                    self.history_of(&key, &unit).done(flow, elapsed_s, reused);
                    if self.done.insert(key, done).is_some() {
                        self.obsolete_bytes += bytes;
                    }
                } else {
                    self.damaged_lines += 1;
                }
            }
            Entry::History { key, history } => {
                self.history.insert(key, history);
            }
        }
    }

    fn history_of(&mut self, key: &UnitKey, unit: &str) -> &mut UnitHistory {
        self.history.entry(key.clone()).or_insert_with(|| UnitHistory::new(unit))
    }

    /// The shortest ledger that says the same. The histories come last: they are what they were before the other lines.
    pub fn compacted(&self) -> serde_json::Result<Vec<u8>> {
        let mut text = Vec::new();
        let unit = |key| self.history.get(key).map(|h| h.unit.clone()).unwrap_or_default();
        for (key, done) in &self.done {
            let entry = Entry::done(key, &unit(key), done)?;
            push_line(&mut text, &entry)?;
        }
        for (key, lease) in &self.leases {
            let (owner, expires) = (lease.owner.clone(), lease.expires);
            push_line(&mut text, &Entry::Claim { key: key.clone(), unit: unit(key), owner, expires })?;
        }
        for (key, history) in &self.history {
            push_line(&mut text, &Entry::History { key: key.clone(), history: history.clone() })?;
        }
        Ok(text)
    }
}

fn push_line(text: &mut Vec<u8>, entry: &Entry) -> serde_json::Result<()> {
    serde_json::to_writer(&mut *text, entry)?;
    text.push(b'\n');
    Ok(())
}
