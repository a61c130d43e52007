//! Runs a command that nobody trusts: in its own process group, with a timeout, with its output streamed to sinks of
//! bounded memory, and with nothing of it left running afterwards.
//!
//! Descendants that leave the process group are found by a cookie in their environment, as Jenkins's process tree
//! killer does.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::base::interrupt;

/// Environment variable that marks every process of a run.
pub const COOKIE: &str = "DAY0_READY_RUN";
/// How long a process group has to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);
/// How long output may still come after the command itself ended.
const DRAIN: Duration = Duration::from_millis(500);
/// Longest wait for output before the clock is looked at again.
const TICK_MS: i32 = 50;

/// A command to run.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Working directory.
    pub dir: PathBuf,
    /// Variables set beside the inherited ones.
    pub env: BTreeMap<String, String>,
    /// Longest time it may take.
    pub timeout: Duration,
    /// Value of [`COOKIE`] by which processes that left the group are found and ended; none where what stays behind is
    /// somebody else's to end.
    pub cookie: Option<String>,
    /// Whether a signal to this process ends the command; not where the command cleans up.
    pub interruptible: bool,
}

impl Spec {
    /// A shell command in `dir`.
    pub fn shell(command: &str, dir: PathBuf, timeout: Duration, cookie: &str) -> Self {
        let argv = ["/bin/sh", "-c", command].map(str::to_owned).to_vec();
        let cookie = Some(cookie.to_owned());
        Self { argv, dir, env: BTreeMap::new(), timeout, cookie, interruptible: true }
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code.
    Exited(i32),
    /// By a signal that was not ours.
    Signaled(i32),
    /// Killed at its timeout.
    TimedOut,
    /// Killed because the runner was asked to stop by this signal.
    Interrupted(i32),
}

/// What became of a command.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// How it ended.
    pub end: End,
    /// How long it took.
    pub elapsed: Duration,
    /// Bytes it printed on both streams.
    pub output_bytes: u64,
}

/// Why a command has no end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It cannot be started.
    #[error("cannot be started: {0}")]
    Start(io::Error),
    /// Its output cannot be read or kept: a problem of this machine, not of the command.
    #[error("its output cannot be kept: {0}")]
    Output(io::Error),
}

impl From<io::Error> for RunError {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Runs `spec` to its end; output goes to `stdout` and `stderr` as it comes.
pub fn run(spec: &Spec, stdout: &mut dyn Write, stderr: &mut dyn Write) -> Result<Ended, RunError> {
    let start = Instant::now();
    let empty = || RunError::Start(io::Error::new(io::ErrorKind::InvalidInput, "no command"));
    let (program, arguments) = spec.argv.split_first().ok_or_else(empty)?;
    let cookie = spec.cookie.as_ref().map(|cookie| (COOKIE, cookie));
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(&spec.dir)
        .envs(&spec.env)
        .envs(cookie)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(RunError::Start)?;
    let result = supervise(&mut child, spec, start, stdout, stderr);
    // Whatever happened, nothing of the command outlives this function.
    end_all(
        &mut child,
        spec.cookie.as_deref(),
        result.as_ref().is_ok_and(|r| matches!(r.end, End::Exited(_))),
    );
    Ok(result?)
}

fn supervise(
    child: &mut Child,
    spec: &Spec,
    start: Instant,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> io::Result<Ended> {
    let mut pipes = Pipes::of(child)?;
    let deadline = start + spec.timeout;
    let mut ended: Option<(ExitStatus, Instant)> = None;
    let mut output_bytes = 0;
    let finish = |end, output_bytes| Ok(Ended { end, elapsed: start.elapsed(), output_bytes });
    loop {
        output_bytes += pipes.pump(stdout, stderr)?;
        if ended.is_none() {
            ended = child.try_wait()?.map(|status| (status, Instant::now()));
        }
        if let Some((status, at)) = ended
            && (pipes.all_closed() || at.elapsed() > DRAIN)
        {
            let end = match (status.code(), status.signal()) {
                (Some(code), _) => End::Exited(code),
                (None, signal) => End::Signaled(signal.unwrap_or(0)),
            };
            return finish(end, output_bytes);
        }
        if let Some(signal) = interrupt::received().filter(|_| spec.interruptible) {
            return finish(End::Interrupted(signal), output_bytes);
        }
        if Instant::now() >= deadline && ended.is_none() {
            terminate(child);
            // What it says while it ends is part of its output.
            let until = Instant::now() + GRACE;
            while Instant::now() < until && child.try_wait()?.is_none() {
                output_bytes += pipes.pump(stdout, stderr)?;
            }
            output_bytes += pipes.pump(stdout, stderr)?;
            return finish(End::TimedOut, output_bytes);
        }
    }
}

/// Both output pipes, read without blocking.
struct Pipes {
    out: Option<std::process::ChildStdout>,
    err: Option<std::process::ChildStderr>,
    buffer: Vec<u8>,
}

impl Pipes {
    fn of(child: &mut Child) -> io::Result<Self> {
        let (out, err) = (child.stdout.take(), child.stderr.take());
        for fd in [out.as_ref().map(AsRawFd::as_raw_fd), err.as_ref().map(AsRawFd::as_raw_fd)] {
            set_nonblocking(fd)?;
        }
        Ok(Self { out, err, buffer: vec![0; 64 << 10] })
    }

    fn all_closed(&self) -> bool {
        self.out.is_none() && self.err.is_none()
    }

    /// Waits for output for at most a tick and passes one buffer of each stream on. Returns the number of bytes.
    fn pump(&mut self, stdout: &mut dyn Write, stderr: &mut dyn Write) -> io::Result<u64> {
        let fd = |fd: Option<i32>| libc::pollfd { fd: fd.unwrap_or(-1), events: libc::POLLIN, revents: 0 };
        let mut fds =
            [fd(self.out.as_ref().map(AsRawFd::as_raw_fd)), fd(self.err.as_ref().map(AsRawFd::as_raw_fd))];
        // SAFETY: `fds` is a valid array of its own length for the duration of the call; negative descriptors are
        // ignored by poll(2).
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, TICK_MS) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(0) } else { Err(error) };
        }
        let buffer = &mut self.buffer;
        Ok(drain_one(&mut self.out, buffer, stdout)? + drain_one(&mut self.err, buffer, stderr)?)
    }
}

/// Passes one buffer on; closes the stream at its end.
fn drain_one<R: Read>(stream: &mut Option<R>, buffer: &mut [u8], sink: &mut dyn Write) -> io::Result<u64> {
    let Some(open) = stream else { return Ok(0) };
    match open.read(buffer) {
        Ok(0) => {
            *stream = None;
            Ok(0)
        }
        Ok(n) => {
            sink.write_all(&buffer[..n])?;
            Ok(n as u64)
        }
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(0),
        Err(e) => Err(e),
    }
}

fn set_nonblocking(fd: Option<i32>) -> io::Result<()> {
    let Some(fd) = fd else { return Ok(()) };
    // SAFETY: `fd` is an open descriptor that this process owns; F_GETFL and F_SETFL touch no memory.
    let done = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        flags >= 0 && libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) >= 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn terminate(child: &Child) {
    signal_group(child.id(), libc::SIGTERM);
}

fn signal_group(pid: u32, signal: i32) {
    // SAFETY: kill(2) touches no memory; a group that is gone gives ESRCH, which is what is wanted.
    unsafe {
        libc::kill(-(pid as i32), signal);
    }
}

/// Ends the group and everything that left it. A command that ended by itself has its group killed at once; one that
/// runs is asked first.
fn end_all(child: &mut Child, cookie: Option<&str>, ended: bool) {
    if !ended && matches!(child.try_wait(), Ok(None)) {
        terminate(child);
        let until = Instant::now() + GRACE;
        while Instant::now() < until && matches!(child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    signal_group(child.id(), libc::SIGKILL);
    // Reaped, so that no zombie stays; a process that is gone already is no error.
    let _ = child.wait();
    let Some(cookie) = cookie else { return };
    // A process may fork while it is looked for.
    for _ in 0..5 {
        let escaped = processes_with(cookie);
        if escaped.is_empty() {
            return;
        }
        for pid in escaped {
            // SAFETY: as in `signal_group`.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Processes other than this one whose environment holds the cookie. Zombies have no environment.
fn processes_with(cookie: &str) -> Vec<i32> {
    let needle = format!("{COOKIE}={cookie}").into_bytes();
    let own = std::process::id() as i32;
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        *pid != own
            && std::fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|environ| environ.split(|b| *b == 0).any(|var| var == needle))
    })
    .collect()
}

/// Keeps the first bytes in a sink and the last in memory: a flood costs neither disk nor memory, and its end is kept.
pub struct Bounded<W> {
    sink: W,
    head_left: u64,
    tail: std::collections::VecDeque<u8>,
    tail_max: usize,
    skipped: u64,
}

impl<W: Write> Bounded<W> {
    /// Passes `head` bytes to `sink` and keeps the last `tail` bytes after them.
    pub fn new(sink: W, head: u64, tail: usize) -> Self {
        Self { sink, head_left: head, tail: std::collections::VecDeque::new(), tail_max: tail, skipped: 0 }
    }

    /// Writes what was kept, after a line that says how much was left out, and gives the sink back.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        if self.skipped > 0 {
            writeln!(self.sink, "\n[… {} bytes left out …]", self.skipped)?;
        }
        let (a, b) = self.tail.as_slices();
        self.sink.write_all(a)?;
        self.sink.write_all(b)?;
        self.sink.flush()?;
        Ok((self.sink, self.skipped))
    }
}

impl<W: Write> Write for Bounded<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let head = bytes.len().min(usize::try_from(self.head_left).unwrap_or(usize::MAX));
        self.sink.write_all(&bytes[..head])?;
        self.head_left -= head as u64;
        let rest = &bytes[head..];
        self.tail.extend(&rest[rest.len().saturating_sub(self.tail_max)..]);
        let excess = self.tail.len().saturating_sub(self.tail_max);
        self.tail.drain(..excess);
        self.skipped += (rest.len().saturating_sub(self.tail_max) + excess) as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(command: &str, timeout_ms: u64) -> (Ended, Vec<u8>, Vec<u8>) {
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let cookie = format!("test-{}-{number}", std::process::id());
        let spec = Spec::shell(command, std::env::temp_dir(), Duration::from_millis(timeout_ms), &cookie);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let ended = run(&spec, &mut out, &mut err).unwrap();
        assert!(processes_with(&cookie).is_empty(), "nothing is left of `{command}`");
        (ended, out, err)
    }

    #[test]
    fn output_of_both_streams_is_captured_to_the_end() {
        let (ended, out, err) = shell("printf 'a\\377b'; echo e >&2; exit 7", 10_000);
        assert_eq!(ended.end, End::Exited(7));
        assert_eq!((out.as_slice(), err.as_slice()), (&b"a\xffb"[..], &b"e\n"[..]));
        assert_eq!(ended.output_bytes, 5);
    }

    #[test]
    fn a_signal_is_not_an_exit_code() {
        assert_eq!(shell("kill -SEGV $$", 10_000).0.end, End::Signaled(libc::SIGSEGV));
    }

    /// Document 002: strict per-step timeouts to prevent hangs.
    #[test]
    fn a_command_that_hangs_is_killed_with_its_group() {
        let start = Instant::now();
        let (ended, out, _) = shell("echo before; sleep 60 & sleep 60", 300);
        assert_eq!(ended.end, End::TimedOut);
        assert_eq!(out, b"before\n");
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_command_that_ignores_sigterm_is_killed() {
        assert_eq!(shell("trap '' TERM; while :; do sleep 0.1; done", 200).0.end, End::TimedOut);
    }

    /// A child that leaves the group and keeps the pipes open would otherwise hold the runner forever.
    #[test]
    fn children_that_leave_the_group_are_found_and_the_end_is_not_waited_for() {
        let start = Instant::now();
        let (ended, ..) = shell("setsid sleep 60 & exit 0", 30_000);
        assert_eq!(ended.end, End::Exited(0));
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_flood_is_bounded_and_its_end_is_kept() {
        let (sink, skipped) = {
            let mut bounded = Bounded::new(Vec::new(), 10, 4);
            for _ in 0..1000 {
                bounded.write_all(b"0123456789").unwrap();
            }
            bounded.write_all(b"end!").unwrap();
            bounded.finish().unwrap()
        };
        assert_eq!(skipped, 10_004 - 14);
        assert!(sink.starts_with(b"0123456789\n[") && sink.ends_with(b"\nend!"), "{sink:?}");
        let mut small = Bounded::new(Vec::new(), 10, 4);
        small.write_all(b"0123456789ab").unwrap();
        assert_eq!(small.finish().unwrap(), (b"0123456789ab".to_vec(), 0));
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let spec = Spec {
            argv: vec!["/nonexistent/program".into()],
            ..Spec::shell("", std::env::temp_dir(), Duration::from_secs(1), "none")
        };
        let error = run(&spec, &mut Vec::new(), &mut Vec::new());
        assert!(matches!(error, Err(RunError::Start(_))));
    }
}
