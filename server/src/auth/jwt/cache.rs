//! Caches the identity provider's keys, and decides when to fetch them again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, ensure};
use jiff::{SignedDuration, Timestamp};

use super::{key_set::KeySet, source::Source};
use crate::clock::Clock;

/// The oldest that cached keys may be while the provider answers. A key that the provider withdraws stays valid for so
/// long.
const MAX_AGE: SignedDuration = SignedDuration::from_mins(10);
/// The shortest time between two fetches, whatever tokens arrive and whether the source answers or not.
const MIN_INTERVAL: SignedDuration = SignedDuration::from_secs(30);

/// The keys, fetched on demand by one request at a time.
pub(super) struct Cache {
    source: Source,
    clock: Arc<dyn Clock>,
    seen: Mutex<Seen>,
    /// Locked by the request that fetches, so that the others wait for its result.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Seen {
    keys: Option<(Arc<KeySet>, Timestamp)>,
    asked: Option<Timestamp>,
}

impl Cache {
    /// Creates a cache of this source. If the source is a file, reads its keys now.
    pub(super) fn new(source: Source, clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let now = clock.now();
        let mut seen = Seen::default();
        if let Some(keys) = source.read_local() {
            let keys = keys.with_context(|| format!("cannot read the keys of jwt_jwks, {source}"))?;
            ensure!(
                !keys.is_empty(),
                "no key of jwt_jwks, {source}, can verify a token: it takes RSA of 2048 to 4096 \
                 bits, P-256, P-384 or Ed25519, and not for encryption"
            );
            seen = Seen { keys: Some((Arc::new(keys), now)), asked: Some(now) };
        }
        Ok(Self { source, clock, seen: Mutex::new(seen), turn: Arc::default() })
    }

    /// Returns the keys, and fetches them if necessary; `None` if there are none.
    pub(super) async fn current(self: &Arc<Self>) -> Option<Arc<KeySet>> {
        let now = self.clock.now();
        let young = |(keys, since): &(Arc<KeySet>, Timestamp)| (age(now, *since) <= MAX_AGE).then(|| Arc::clone(keys));
        let keys = self.seen().keys.as_ref().and_then(young);
        if keys.is_some() { keys } else { self.refreshed().await }
    }

    /// Returns the keys, fetched again unless that happened just now. If the fetch fails, returns the old keys.
    pub(super) async fn refreshed(self: &Arc<Self>) -> Option<Arc<KeySet>> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        if self.may_ask() {
            let cache = Arc::clone(self);
            // A separate task: if this caller disconnects, the fetch continues for the callers that wait for it.
            let asking = tokio::spawn(async move {
                cache.ask().await;
                drop(turn);
            });
            if let Err(error) = asking.await {
                tracing::error!(%error, "the fetch of the identity provider's keys did not end");
            }
        }
        self.seen().keys.as_ref().map(|(keys, _)| Arc::clone(keys))
    }

    fn may_ask(&self) -> bool {
        let now = self.clock.now();
        self.seen().asked.is_none_or(|asked| age(now, asked) >= MIN_INTERVAL)
    }

    async fn ask(&self) {
        let now = self.clock.now();
        let answer = self.source.read().await;
        let mut seen = self.seen();
        seen.asked = Some(now);
        match answer {
            Ok(keys) => {
                if keys.is_empty() {
                    tracing::warn!(source = %self.source, "the identity provider has no key that can verify a token");
                }
                seen.keys = Some((Arc::new(keys), now));
            }
            Err(error) => tracing::warn!(
                source = %self.source, error = format!("{error:#}"), old_keys = seen.keys.is_some(),
                "cannot get the identity provider's keys"
            ),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the time between the two. A clock that was set back must not make old keys look new.
fn age(now: Timestamp, then: Timestamp) -> SignedDuration {
    now.duration_since(then).abs()
}
