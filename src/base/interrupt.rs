//! Ctrl-C and SIGTERM: remembered by a flag that long work asks between units.
//!
//! The first signal asks for a clean stop; a second one ends the process at once with 128 + signal.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

pub use signal_hook::consts::SIGUSR1 as WARNING;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};

static RECEIVED: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// Installs the handlers. Safe to call more than once; later calls change nothing.
pub fn install() -> std::io::Result<()> {
    if RECEIVED.get().is_some() {
        return Ok(());
    }
    let received = Arc::new(AtomicUsize::new(0));
    for signal in [SIGINT, SIGTERM] {
        let again = Arc::new(AtomicBool::new(false));
        // Order matters: the conditional shutdown must see the flag of the signal before this one.
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&again))?;
        signal_hook::flag::register(signal, again)?;
        signal_hook::flag::register_usize(signal, Arc::clone(&received), signal as usize)?;
    }
    // A lost race means that another thread installed its handlers first; both sets only set flags.
    let _ = RECEIVED.set(received);
    Ok(())
}

/// Remembers SIGUSR1 as well, which a batch system sends before a time limit: work stores what it has and stops.
pub fn install_warning() -> std::io::Result<()> {
    install()?;
    if let Some(received) = RECEIVED.get() {
        signal_hook::flag::register_usize(SIGUSR1, Arc::clone(received), SIGUSR1 as usize)?;
    }
    Ok(())
}

/// Lets SIGUSR1 pass, for work that is short and must not stop half-way.
pub fn ignore_warning() -> std::io::Result<()> {
    signal_hook::flag::register(SIGUSR1, Arc::new(AtomicBool::new(false))).map(|_| ())
}

/// The signal received since [`install`], if any.
pub fn received() -> Option<i32> {
    let signal = RECEIVED.get()?.load(Ordering::Relaxed);
    (signal != 0).then_some(signal as i32)
}
