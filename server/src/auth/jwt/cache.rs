//! The identity provider's keys as last seen, and when to ask for them again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, ensure};
use jiff::{SignedDuration, Timestamp};

use super::{key_set::KeySet, source::Source};
use crate::clock::Clock;

/// How old keys may be while the provider answers: so long a key that it withdraws is still good.
const MAX_AGE: SignedDuration = SignedDuration::from_mins(10);
/// The source is not asked more often, whatever tokens come and whether it answers or not.
const MIN_INTERVAL: SignedDuration = SignedDuration::from_secs(30);

/// The keys, fetched when they are needed, by one at a time.
pub(super) struct Cache {
    source: Source,
    clock: Arc<dyn Clock>,
    seen: Mutex<Seen>,
    /// Held by who asks the source, so that the others wait for the answer.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Seen {
    keys: Option<(Arc<KeySet>, Timestamp)>,
    asked: Option<Timestamp>,
}

impl Cache {
    /// A cache of this source, with its keys if it is a file.
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

    /// The keys, if need be fetched; `None` where there are none.
    pub(super) async fn current(self: &Arc<Self>) -> Option<Arc<KeySet>> {
        let now = self.clock.now();
        let young = |(keys, since): &(Arc<KeySet>, Timestamp)| (age(now, *since) <= MAX_AGE).then(|| Arc::clone(keys));
        let keys = self.seen().keys.as_ref().and_then(young);
        if keys.is_some() { keys } else { self.refreshed().await }
    }

    /// The keys, fetched again unless they just were; the old ones where that fails.
    pub(super) async fn refreshed(self: &Arc<Self>) -> Option<Arc<KeySet>> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        if self.may_ask() {
            let cache = Arc::clone(self);
            // In a task of its own: a caller who hangs up does not end the fetch that others wait for.
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

/// How long ago that was. A clock that was set back must not make it stay new.
fn age(now: Timestamp, then: Timestamp) -> SignedDuration {
    now.duration_since(then).abs()
}
