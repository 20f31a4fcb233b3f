//! Tells people why the command waits.

use std::{
    io::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use keypool_client::{Error, OnRetry};

use crate::{colour::warning, text::clean};

/// A wait that is shorter needs no explanation.
const NOTICEABLE: Duration = Duration::from_secs(1);

/// The place where the reason of a wait is shown.
type Show = Box<dyn Fn(&str) + Send>;

/// Shows why a call to the server takes long: once, until [`Retries::forget`]. Clones share one state.
#[derive(Clone)]
pub struct Retries {
    is_told: Arc<AtomicBool>,
    show: Arc<Mutex<Show>>,
}

impl Retries {
    /// Shows it on the standard error.
    pub fn new() -> Self {
        let show = |text: &str| {
            // If it is closed, nobody waits for an explanation.
            let _ = writeln!(anstream::stderr(), "{text}");
        };
        Self { is_told: Arc::default(), show: Arc::new(Mutex::new(Box::new(show))) }
    }

    /// Shows it in another place from now on.
    pub fn show_in(&self, show: Show) {
        *self.show.lock().unwrap_or_else(PoisonError::into_inner) = show;
    }

    /// The next reason is shown again. Returns whether one was shown.
    pub fn forget(&self) -> bool {
        self.is_told.swap(false, Ordering::Relaxed)
    }

    /// The hook for the library.
    pub fn hook(&self) -> OnRetry {
        let its = self.clone();
        Arc::new(move |error, waited| its.notice(error, waited))
    }

    fn notice(&self, error: &Error, waited: Duration) {
        if waited >= NOTICEABLE {
            self.tell(error);
        }
    }

    /// Shows a reason, unless one was shown.
    pub fn tell(&self, error: &Error) {
        if !self.is_told.swap(true, Ordering::Relaxed) {
            let text = warning(&format!("offline: {}; trying again", clean(&error.with_causes())));
            (self.show.lock().unwrap_or_else(PoisonError::into_inner))(&text);
        }
    }
}
