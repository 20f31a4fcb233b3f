//! Requests for a device's queue: few for each device, and woken when something comes.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::{connections::End, store::DeviceId};

/// The most fetches of one device at a time: one that waits, and one that does not.
const OF_A_DEVICE: usize = 2;

/// All fetches that this server is answering.
#[derive(Debug)]
pub(crate) struct Fetches {
    /// The fetches of each device, oldest first.
    by_device: Mutex<HashMap<DeviceId, VecDeque<Arc<Call>>>>,
    places: Arc<Semaphore>,
    most_waiting: usize,
    is_closed: AtomicBool,
}

#[derive(Debug, Default)]
pub(crate) struct Call {
    news: Notify,
    is_displaced: AtomicBool,
    is_sent: AtomicBool,
    /// Closes the fetch's connection.
    end: Option<Arc<End>>,
}

/// One fetch, from its start until its answer is sent.
#[derive(Debug)]
pub(crate) struct Fetch {
    all: Arc<Fetches>,
    device: DeviceId,
    call: Arc<Call>,
}

impl Fetches {
    pub(crate) fn new(most_waiting: usize) -> Self {
        let places = Arc::new(Semaphore::new(most_waiting));
        Self { by_device: Mutex::default(), places, most_waiting, is_closed: false.into() }
    }

    /// The number of fetches that wait for messages.
    pub(crate) fn waiting(&self) -> usize {
        self.most_waiting.saturating_sub(self.places.available_permits())
    }

    /// Begins a fetch. If the device has too many, the oldest is displaced: it gets an empty page, or its connection is
    /// closed if its answer is being sent. So a broken connection does not block a client that connects again.
    pub(crate) fn begin(self: &Arc<Self>, device: DeviceId, end: Option<Arc<End>>) -> Fetch {
        let call = Arc::new(Call { end, ..Call::default() });
        let mut by_device = self.by_device();
        let calls = by_device.entry(device).or_default();
        while calls.len() >= OF_A_DEVICE {
            calls.pop_front().inspect(|oldest| oldest.displace());
        }
        calls.push_back(Arc::clone(&call));
        drop(by_device);
        Fetch { all: Arc::clone(self), device, call }
    }

    /// Returns a permit to wait, held until it is dropped; `None` if too many fetches wait already.
    pub(crate) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// Wakes the fetches of these devices: their queues have new messages.
    pub(crate) fn ring(&self, devices: &[DeviceId]) {
        let by_device = self.by_device();
        for call in devices.iter().filter_map(|device| by_device.get(device)).flatten() {
            call.news.notify_waiters();
        }
    }

    /// Wakes all fetches: any queue may have new messages.
    pub(crate) fn ring_all(&self) {
        for call in self.by_device().values().flatten() {
            call.news.notify_waiters();
        }
    }

    /// Ends all waits and allows no new ones, because the server is stopping.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.ring_all();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    fn by_device(&self) -> MutexGuard<'_, HashMap<DeviceId, VecDeque<Arc<Call>>>> {
        self.by_device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call {
    /// Is notified when a message arrives for the device. Create the notification before reading the queue.
    pub(crate) fn news(&self) -> &Notify {
        &self.news
    }

    pub(crate) fn is_displaced(&self) -> bool {
        self.is_displaced.load(Ordering::Acquire)
    }

    fn displace(&self) {
        self.is_displaced.store(true, Ordering::Release);
        if self.is_sent.load(Ordering::Acquire)
            && let Some(end) = &self.end
        {
            end.now();
        }
        self.news.notify_waiters();
    }
}

impl Fetch {
    pub(crate) fn call(&self) -> Arc<Call> {
        Arc::clone(&self.call)
    }

    /// Marks the answer as being sent. Returns `false` if the fetch was displaced before.
    pub(crate) fn sends(&self) -> bool {
        // A displacing fetch takes the same lock: either it sees `is_sent`, or this sees `is_displaced`.
        let _by_device = self.all.by_device();
        self.call.is_sent.store(true, Ordering::Release);
        !self.call.is_displaced()
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        let mut by_device = self.all.by_device();
        if let Some(calls) = by_device.get_mut(&self.device) {
            calls.retain(|call| !Arc::ptr_eq(call, &self.call));
            if calls.is_empty() {
                by_device.remove(&self.device);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn who_asks_before_it_looks_misses_nothing() {
        let fetches = Arc::new(Fetches::new(10));
        let begin = |device| fetches.begin(DeviceId(device), None);
        let (one, same, other) = (begin(1), begin(1), begin(2));
        let (first, second) = (one.call.news.notified(), same.call.news.notified());
        fetches.ring(&[DeviceId(1)]);
        first.await;
        second.await;
        let waits = other.call.news.notified();
        tokio::pin!(waits);
        assert!(poll!(waits.as_mut()).is_pending());
        fetches.close();
        waits.await;
        assert!(fetches.is_closed());
    }

    #[tokio::test]
    async fn the_newest_two_of_a_device_stay() {
        let fetches = Arc::new(Fetches::new(10));
        let end = Arc::new(End::default());
        let oldest = fetches.begin(DeviceId(1), Some(Arc::clone(&end)));
        let other = fetches.begin(DeviceId(2), None);
        assert!(oldest.sends());
        let second = fetches.begin(DeviceId(1), None);
        assert!(!oldest.call.is_displaced());
        let waits = second.call.news.notified();
        let third = fetches.begin(DeviceId(1), None);
        assert!(oldest.call.is_displaced() && end.is_ended());
        let fourth = fetches.begin(DeviceId(1), None);
        waits.await;
        assert!(second.call.is_displaced() && !second.sends());
        assert!([&third, &fourth, &other].iter().all(|fetch| fetch.sends()));
    }

    #[test]
    fn who_has_gone_is_forgotten_and_leaves_its_place() {
        let fetches = Arc::new(Fetches::new(1));
        for device in 0..100 {
            drop(fetches.begin(DeviceId(device), None));
        }
        let _fetch = fetches.begin(DeviceId(100), None);
        assert_eq!(fetches.by_device().len(), 1);
        let place = fetches.place();
        assert!(place.is_some() && fetches.place().is_none());
        drop(place);
        assert!(fetches.place().is_some());
    }
}
