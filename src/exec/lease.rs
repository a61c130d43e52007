//! Who owns a unit while it runs, and when an owner counts as gone.

use serde::{Deserialize, Serialize};

use crate::base::{clock, env_vars};

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
    /// The process's pid namespace: in another one, its pid says nothing here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_space: Option<String>,
    /// Slurm job, `12` or `12_3` for a task of an array, with `+N` after N restarts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Slurm's name of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

impl Owner {
    /// This process.
    pub fn current() -> Self {
        let pid = std::process::id();
        Self {
            host: host_name(),
            pid,
            started: process_start(pid).unwrap_or(0),
            pid_space: pid_space(),
            job: slurm_job(),
            node: env_vars::get(env_vars::SLURMD_NODENAME),
        }
    }

    /// Where it runs, for people: the node, else the host.
    pub fn place(&self) -> &str {
        self.node.as_deref().unwrap_or(&self.host)
    }

    /// Whether the owner is known to be gone: same host and pid namespace, and no process with this pid and start time.
    /// Of a process elsewhere nothing is known before its lease ends.
    pub fn is_gone(&self) -> bool {
        self.is_visible() && process_start(self.pid) != Some(self.started)
    }

    /// Whether this process could see it: same host, same pid namespace.
    pub fn is_visible(&self) -> bool {
        self.host == host_name() && self.pid_space == pid_space()
    }
}

fn pid_space() -> Option<String> {
    Some(std::fs::read_link("/proc/self/ns/pid").ok()?.to_string_lossy().into_owned())
}

fn slurm_job() -> Option<String> {
    let array = env_vars::get(env_vars::SLURM_ARRAY_JOB_ID).zip(env_vars::get(env_vars::SLURM_ARRAY_TASK_ID));
    let job = match array {
        Some((job, task)) => format!("{job}_{task}"),
        None => env_vars::get(env_vars::SLURM_JOB_ID)?,
    };
    Some(match env_vars::get(env_vars::SLURM_RESTART_COUNT).filter(|n| n != "0") {
        Some(restarts) => format!("{job}+{restarts}"),
        None => job,
    })
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
