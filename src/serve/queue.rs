//! The engine's thread: one request after the other, first come first served.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use super::backend::{Backend, BackendError};
use super::complete::{Output, complete};
use super::request::Completion;
use super::text::TextCodec;

/// One request and where its answer goes.
pub(super) struct Job {
    pub request: Arc<Completion>,
    pub reply: oneshot::Sender<Result<Vec<Output>, BackendError>>,
}

/// Starts the thread; it ends when every sender is gone and the queue is empty, or at once after the request in
/// hand when `abandon` is set. `healthy` turns false when the engine panicked.
pub(super) fn spawn(
    backend: Arc<dyn Backend>,
    text: Arc<dyn TextCodec>,
    mut jobs: mpsc::Receiver<Job>,
    healthy: Arc<AtomicBool>,
    abandon: Arc<AtomicBool>,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("day0-engine".to_owned()).spawn(move || {
        while let Some(job) = jobs.blocking_recv() {
            if abandon.load(Ordering::Relaxed) {
                break;
            }
            run(job, &*backend, &*text, &healthy, &abandon);
        }
    })
}

fn run(job: Job, backend: &dyn Backend, text: &dyn TextCodec, healthy: &AtomicBool, abandon: &AtomicBool) {
    let mut outputs = Vec::with_capacity(job.request.prompts.len());
    for prompt in &job.request.prompts {
        // A client that went away frees the engine at the next prompt.
        if job.reply.is_closed() || abandon.load(Ordering::Relaxed) {
            return;
        }
        let result = catch_unwind(AssertUnwindSafe(|| complete(&job.request, prompt, backend, text)));
        let result = result.unwrap_or_else(|_| {
            healthy.store(false, Ordering::Relaxed);
            Err(BackendError("the engine panicked; see the log".to_owned()))
        });
        match result {
            Ok(output) => outputs.push(output),
            Err(error) => {
                // Nobody waits for the answer when the client went away meanwhile.
                let _ = job.reply.send(Err(error));
                return;
            }
        }
    }
    let _ = job.reply.send(Ok(outputs));
}
