//! Caches for a few seconds which device a token belongs to.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use moka::sync::Cache;

use crate::store::DeviceRow;

/// The most known tokens, and the most unknown tokens, in the cache. Each takes a few hundred bytes.
const CAPACITY: u64 = 20_000;

/// Devices by the hash of their tokens, so that a busy device does not cost a query for each request. An entry lives no
/// longer than a removed device may still be served. Unknown tokens have a cache of their own, so that made-up tokens
/// do not displace real ones.
#[derive(Clone)]
pub(crate) struct TokenCache {
    devices: Cache<[u8; 32], (Arc<DeviceRow>, Timestamp)>,
    unknown: Cache<[u8; 32], Timestamp>,
    keep: SignedDuration,
}

/// The cache's answer for a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Remembered {
    /// The token belongs to this device.
    Device(Arc<DeviceRow>),
    /// No device has the token.
    Unknown,
    /// The cache has no answer: query the database.
    Nothing,
}

impl TokenCache {
    pub(crate) fn new(keep: Duration) -> Self {
        Self {
            devices: Cache::new(CAPACITY),
            unknown: Cache::new(CAPACITY),
            keep: SignedDuration::try_from(keep).unwrap_or(SignedDuration::ZERO),
        }
    }

    pub(crate) fn get(&self, token_hash: &[u8; 32], now: Timestamp) -> Remembered {
        // After the clock went back, the age of an entry is unknown.
        let is_recent = |since| (SignedDuration::ZERO..self.keep).contains(&now.duration_since(since));
        if let Some((device, _)) = self.devices.get(token_hash).filter(|(_, since)| is_recent(*since)) {
            Remembered::Device(device)
        } else if self.unknown.get(token_hash).is_some_and(is_recent) {
            Remembered::Unknown
        } else {
            Remembered::Nothing
        }
    }

    /// Caches the database's answer at this time: the token's device, if there is one.
    pub(crate) fn put(&self, token_hash: [u8; 32], device: Option<&Arc<DeviceRow>>, since: Timestamp) {
        if self.keep <= SignedDuration::ZERO {
            return;
        }
        match device {
            Some(device) => self.devices.insert(token_hash, (Arc::clone(device), since)),
            None => self.unknown.insert(token_hash, since),
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
        let device = Arc::new(device);
        cache.put([1; 32], Some(&device), second(100));
        cache.put([3; 32], None, second(100));
        for (token, known) in [(1, Remembered::Device(device)), (3, Remembered::Unknown)] {
            assert_eq!(cache.get(&[token; 32], second(104)), known);
            assert_eq!(cache.get(&[token; 32], second(105)), Remembered::Nothing);
            assert_eq!(cache.get(&[token; 32], second(99)), Remembered::Nothing);
        }
        assert_eq!(cache.get(&[2; 32], second(100)), Remembered::Nothing);
        cache.forget(&[1; 32]);
        assert_eq!(cache.get(&[1; 32], second(101)), Remembered::Nothing);
    }
}
