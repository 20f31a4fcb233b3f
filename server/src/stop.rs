//! Stops the server without losing a request, and its start at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::Context;
use tokio::{
    runtime::Handle,
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

/// Whether the server is stopping: it still serves, but reports that it is not ready. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Stopping(Arc<AtomicBool>);

impl Stopping {
    /// Begins to stop.
    pub fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the server has begun to stop.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Runs blocking work that a signal may cut short. The thread is not one of the runtime: the process could not end before
/// the work is done.
///
/// # Errors
/// The error of the work, or that it panicked.
pub async fn in_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let (runtime, (done, result)) = (Handle::current(), oneshot::channel());
    thread::Builder::new().spawn(move || {
        let _runtime = runtime.enter();
        // Nobody waits for the result after a signal.
        let _ = done.send(work());
    })?;
    result.await.context("a thread ended before its work was done: the line before says why")?
}

/// The signals that stop the process.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes over the signals, so that they no longer end the process by themselves.
    ///
    /// # Errors
    /// When the operating system refuses it.
    pub fn take() -> anyhow::Result<Self> {
        let take = |kind| signal(kind).context("cannot wait for the signals that stop the server");
        Ok(Self { terminate: take(SignalKind::terminate())?, interrupt: take(SignalKind::interrupt())? })
    }

    /// Waits for the next signal, and returns its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
