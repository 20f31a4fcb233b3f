//! Identifies the caller of a request by its bearer token.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use keypool_openapi::{ProblemType, UserName};
use keypool_validation::token::{LinkCode, Token, bearer};

use super::{
    admin::AdminHash,
    cache::{Remembered, TokenCache},
    jwt::{JwtError, JwtVerifier},
};
use crate::{
    batching::{Batch, Batcher, Size},
    caller::{Bearer, Caller},
    clock::Clock,
    config::Config,
    limits::{Limits, Origin, Strangers},
    problem::{Failure, unknown_token},
    store::{DeviceRow, Store, StoreError},
    work::Work,
};

/// Pause before an unreachable identity provider is asked again.
const PROVIDER_RETRY: Duration = Duration::from_secs(30);

/// The most tokens in one query.
const MOST: usize = 64;

/// Look-ups of tokens, which share a statement.
struct Lookups {
    store: Store,
}

impl Batch for Lookups {
    const NAME: &'static str = "token";
    /// The SHA-256 of a token.
    type Request = [u8; 32];
    type Answer = Option<DeviceRow>;

    fn together(&self, hashes: &[[u8; 32]], _: Timestamp) -> Result<Vec<Option<Option<DeviceRow>>>, StoreError> {
        Ok(self.store.authenticate(hashes)?.into_iter().map(Some).collect())
    }

    fn alone(&self, hash: [u8; 32], _: Timestamp) -> Result<Option<DeviceRow>, Failure> {
        Ok(self.store.authenticate(&[hash])?.pop().flatten())
    }
}

/// Finds the device, the operator or the user that a token belongs to. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Authenticator {
    work: Work,
    lookups: Batcher<Lookups>,
    tokens: TokenCache,
    limits: Arc<Limits>,
    admin: Option<AdminHash>,
    /// The identity provider of new users, if registration uses `jwt`.
    provider: Option<Arc<JwtVerifier>>,
}

impl Authenticator {
    /// # Errors
    /// When the identity provider's keys cannot be read, or the system has no thread for look-ups.
    pub(crate) fn new(
        (store, work, clock): (Store, &Work, Arc<dyn Clock>),
        config: &Config,
        limits: Arc<Limits>,
    ) -> anyhow::Result<Self> {
        // Only one connection looks up tokens, so that made-up tokens cannot occupy the others.
        let size = Size { workers: 1, room: config.max_waiting_requests as usize, most: MOST };
        Ok(Self {
            lookups: Batcher::start(Lookups { store }, size, work)?,
            work: work.clone(),
            tokens: TokenCache::new(config.token_cache),
            limits,
            admin: config.admin_token.as_ref().map(|token| AdminHash::of(token.expose())),
            provider: JwtVerifier::from_config(config, clock)?.map(Arc::new),
        })
    }

    /// Returns the bearer of the token in an `Authorization` header. Counts the request of a device.
    ///
    /// # Errors
    /// `unauthenticated` if the token has the form of a device's token and no device has it, `too-many-requests` if its
    /// user exceeds the limit.
    pub(crate) async fn bearer(&self, header: &str, origin: Origin) -> Result<Bearer, Failure> {
        if let Some(token) = Token::from_header(header) {
            return Ok(Bearer::Device(self.device(token.hash(), origin).await?.ok_or_else(unknown_token)?));
        }
        let token = bearer(header).ok_or_else(unknown_token)?;
        if self.admin.as_ref().is_some_and(|admin| admin.is_of(token)) {
            return Ok(Bearer::Admin);
        }
        if let Some(code) = LinkCode::from_bearer(token) {
            return Ok(Bearer::Link(code.hash()));
        }
        Ok(Token::enrolment_from(token).map_or(Bearer::Stranger, |enrolment| Bearer::Enrolment(enrolment.hash())))
    }

    async fn device(&self, hash: [u8; 32], origin: Origin) -> Result<Option<Caller>, Failure> {
        let now = self.work.now();
        let device = match self.tokens.get(&hash, now) {
            Remembered::Device(device) => Some(device),
            Remembered::Unknown => None,
            Remembered::Nothing => {
                self.strangers().admit(origin)?;
                let device = self.lookups.run(hash).await?.map(Arc::new);
                if device.is_none() {
                    self.strangers().count(origin);
                }
                // Only fresh answers of the database are cached. Caching a cached answer again would keep it for ever.
                self.tokens.put(hash, device.as_ref(), now);
                device
            }
        };
        if let Some(device) = &device {
            self.limits.request(&device.user, 1)?;
        }
        Ok(device.map(|device| Caller { device, token_hash: hash }))
    }

    /// Returns the user that a token of the identity provider names; `None` without an identity provider.
    ///
    /// # Errors
    /// `unauthenticated` if the token is refused, `unavailable` if the provider's keys are unavailable.
    pub(crate) async fn user(&self, header: &str) -> Result<Option<UserName>, Failure> {
        let (Some(verifier), Some(token)) = (&self.provider, bearer(header)) else { return Ok(None) };
        match verifier.verify(token).await {
            Ok(subject) => Ok(Some(subject)),
            Err(JwtError::Invalid(reason)) => Err(Failure::new(
                ProblemType::Unauthenticated,
                format!("The identity provider's token is refused: {reason}. Sign in again, and send the new one."),
            )),
            Err(JwtError::Unavailable) => Err(Failure {
                retry_after: Some(PROVIDER_RETRY),
                ..Failure::new(
                    ProblemType::Unavailable,
                    "The keys of the identity provider are not available now. Try again later.",
                )
            }),
        }
    }

    /// Removes a revoked token from the cache.
    pub(crate) fn forget(&self, token_hash: &[u8; 32]) {
        self.tokens.forget(token_hash);
    }

    /// The limits by address, for requests without a known token.
    pub(crate) fn strangers(&self) -> &Strangers {
        self.limits.strangers()
    }
}
