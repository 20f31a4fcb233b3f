//! Waking who waits for a message.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;

use crate::store::DeviceId;

/// Rings for devices whose requests wait in this server.
#[derive(Debug, Default)]
pub struct Bell {
    waiting: Mutex<HashMap<DeviceId, Weak<Notify>>>,
    is_closed: AtomicBool,
}

impl Bell {
    /// What is notified when something comes for a device. Ask for the notification before looking at the queue.
    pub(crate) fn of(&self, device: DeviceId) -> Arc<Notify> {
        let mut waiting = self.waiting();
        if let Some(notify) = waiting.get(&device).and_then(Weak::upgrade) {
            return notify;
        }
        // Whoever waited before and does no more is forgotten when somebody new comes.
        waiting.retain(|_, notify| notify.strong_count() > 0);
        let notify = Arc::new(Notify::new());
        waiting.insert(device, Arc::downgrade(&notify));
        notify
    }

    /// Something has come for these devices.
    pub(crate) fn ring(&self, devices: &[DeviceId]) {
        let waiting = self.waiting();
        for device in devices {
            if let Some(notify) = waiting.get(device).and_then(Weak::upgrade) {
                notify.notify_waiters();
            }
        }
    }

    /// Something may have come for anybody.
    pub(crate) fn ring_all(&self) {
        for notify in self.waiting().values().filter_map(Weak::upgrade) {
            notify.notify_waiters();
        }
    }

    /// From now on nobody waits: the server stops.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.ring_all();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<DeviceId, Weak<Notify>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_asks_before_it_looks_misses_nothing() {
        let bell = Bell::default();
        let (one, same, other) = (bell.of(DeviceId(1)), bell.of(DeviceId(1)), bell.of(DeviceId(2)));
        let (first, second) = (one.notified(), same.notified());
        bell.ring(&[DeviceId(1)]);
        first.await;
        second.await;
        let waits = other.notified();
        tokio::pin!(waits);
        assert!(futures_util::poll!(waits.as_mut()).is_pending());
        bell.close();
        waits.await;
        assert!(bell.is_closed());
    }

    #[test]
    fn who_has_gone_is_forgotten() {
        let bell = Bell::default();
        for device in 0..100 {
            drop(bell.of(DeviceId(device)));
        }
        let _waits = bell.of(DeviceId(100));
        assert_eq!(bell.waiting().len(), 1);
    }
}
