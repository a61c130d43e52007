//! Who owns a unit while it runs, and when an owner counts as gone.

use serde::{Deserialize, Serialize};

use crate::base::clock;

/// A lease that is not renewed for this long may be taken over, in seconds.
pub(super) const LEASE_SECONDS: u64 = 120;

/// A process that can own units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Host name.
    pub host: String,
    /// Process id.
    pub pid: u32,
    /// Start time of the process in clock ticks since boot: a reused pid is another process.
    pub started: u64,
}

impl Owner {
    /// This process.
    pub fn current() -> Self {
        let pid = std::process::id();
        Self { host: host_name(), pid, started: process_start(pid).unwrap_or(0) }
    }

    /// Whether the owner is known to be gone: same host, and no process with this pid and start time.
    pub(super) fn is_gone(&self) -> bool {
        self.host == host_name() && process_start(self.pid) != Some(self.started)
    }
}

/// A lease as the ledger holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    pub owner: Owner,
    pub expires: u64,
}

impl Lease {
    pub(super) fn is_stale(&self) -> bool {
        clock::unix_seconds() > self.expires || self.owner.is_gone()
    }
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".to_owned(), |h| h.trim().to_owned())
}

/// Field 22 (`starttime`) of /proc/PID/stat; fields are counted after the parenthesized command name (proc(5)).
fn process_start(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = &stat[stat.rfind(')')? + 1..];
    let mut fields = after_name.split_whitespace();
    // A zombie has ended; only its parent has not noticed.
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_there_and_a_reused_pid_is_not() {
        let me = Owner::current();
        assert!(me.started > 0);
        assert!(!me.is_gone());
        assert!(Owner { started: me.started + 1, ..me }.is_gone());
    }
}
