use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use moka::sync::Cache;

use crate::store::DeviceRow;

/// Tokens that are remembered at most: a few hundred bytes each.
const CAPACITY: u64 = 20_000;

/// Devices by the hash of their tokens, so that a busy device does not cost a query a request. Nothing is remembered
/// for longer than a removed device may still be served.
#[derive(Clone)]
pub(crate) struct TokenCache {
    devices: Cache<[u8; 32], (Arc<DeviceRow>, Timestamp)>,
    keep: SignedDuration,
}

impl TokenCache {
    pub(crate) fn new(keep: Duration) -> Self {
        Self { devices: Cache::new(CAPACITY), keep: SignedDuration::try_from(keep).unwrap_or(SignedDuration::ZERO) }
    }

    pub(crate) fn get(&self, token_hash: &[u8; 32], now: Timestamp) -> Option<Arc<DeviceRow>> {
        let (device, since) = self.devices.get(token_hash)?;
        let age = now.duration_since(since);
        // A clock that went back proves nothing about how old this is.
        (age >= SignedDuration::ZERO && age < self.keep).then_some(device)
    }

    /// Remembers a device that was looked up at this time.
    pub(crate) fn put(&self, token_hash: [u8; 32], device: Arc<DeviceRow>, since: Timestamp) {
        if self.keep > SignedDuration::ZERO {
            self.devices.insert(token_hash, (device, since));
        }
    }

    pub(crate) fn forget(&self, token_hash: &[u8; 32]) {
        self.devices.invalidate(token_hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::DeviceId;

    #[test]
    fn a_token_is_remembered_no_longer_than_it_may_be() {
        let second = |second| Timestamp::from_second(second).unwrap();
        let cache = TokenCache::new(Duration::from_secs(5));
        let device = DeviceRow {
            id: DeviceId(1),
            user: "alice".parse().unwrap(),
            device: "laptop".parse().unwrap(),
            registered_at: second(0),
        };
        cache.put([1; 32], Arc::new(device), second(100));
        assert!(cache.get(&[1; 32], second(104)).is_some());
        assert!(cache.get(&[1; 32], second(105)).is_none());
        assert!(cache.get(&[1; 32], second(99)).is_none());
        assert!(cache.get(&[2; 32], second(100)).is_none());
        cache.forget(&[1; 32]);
        assert!(cache.get(&[1; 32], second(101)).is_none());
    }
}
