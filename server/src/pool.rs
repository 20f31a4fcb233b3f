//! The rules of the pool: who may hold what, how long, and how a pool is doing.

mod delivery;
mod devices;
mod directory;
mod inventory;
mod key_changes;
mod queues;
mod reservations;
mod status;
mod upload;

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use actix_web::web;
use jiff::{SignedDuration, Timestamp};
use keypool_openapi::ProblemType;
use keypool_validation::{
    key_package::{CredentialBinding, Rules},
    token::Token,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(crate) use delivery::Fetched;
use queues::Queues;
use upload::Uploader;

use crate::{
    answers::Answers,
    auth::{AdminHash, Caller, Remembered, TokenCache, jwt::JwtVerifier},
    capacity::Capacity,
    clock::Clock,
    config::{Config, OnLapse, Registration},
    connections::Connections,
    fetches::Fetches,
    generation::GenerationFile,
    limits::{Limits, Origin, Strangers},
    problem::Failure,
    store::{AsOf, Heard, HoldLimits, Store, StoreError, UploadLimits},
    sweeper,
};

/// What is made of a body takes as much beside it.
const TAKES_OF_BODIES: usize = 2;

/// Bodies up to this size have a quarter of the room for themselves.
const MODERATE_BODY: usize = 128 * 1024;

/// What the operator decides.
#[derive(Clone, Debug)]
struct Policy {
    registration: Registration,
    admin: Option<AdminHash>,
    max_devices: u32,
    /// Whether a device is held to one signature key in each ciphersuite.
    binds_keys: bool,
    reservation_ttl: Duration,
    max_reservation_ttl: Duration,
    /// Whether a KeyPackage is handed out once only.
    retire: bool,
    idempotency_window: Duration,
    min_remaining: Duration,
    /// `None` where requests are not limited.
    hold_limits: Option<HoldLimits>,
    sweep: sweeper::Rules,
    message_retention: Duration,
    queue_capacity: u32,
    health: status::Watermarks,
}

/// The pool service: the rules over the store. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    store: Store,
    clock: Arc<dyn Clock>,
    policy: Arc<Policy>,
    tokens: TokenCache,
    limits: Arc<Limits>,
    /// Who vouches for new users, in the registration mode `jwt`.
    provider: Option<Arc<JwtVerifier>>,
    /// The requests for messages, and what wakes those that wait.
    fetches: Arc<Fetches>,
    /// Batches the frequent requests.
    queues: Queues,
    /// Validates and stores uploads.
    uploader: Uploader,
    /// One place for each request that may wait for the database.
    places: Arc<Semaphore>,
    /// Room for bodies that are not small, by KiB.
    bodies: Arc<Semaphore>,
    capacity: Capacity,
    connections: Arc<Connections>,
    /// Room for answers that are not small.
    answers: Arc<Answers>,
    /// Where it is kept how far the database has come, if it does not tell by itself that it was restored.
    generation: Option<GenerationFile>,
}

impl Pool {
    /// The pool in this store, by this configuration and clock.
    ///
    /// # Errors
    /// When a setting cannot be put to work: a duration that is longer than time itself, or identity provider's keys
    /// that cannot be read; or when the system has no threads for it.
    pub fn new(store: Store, clock: Arc<dyn Clock>, config: &Config) -> anyhow::Result<Self> {
        let limits = Limits::new(config, Arc::clone(&clock));
        let provider = JwtVerifier::from_config(config, Arc::clone(&clock))?;
        let policy = Policy {
            registration: config.registration,
            admin: config.admin_token.as_ref().map(|token| AdminHash::of(token.expose())),
            max_devices: config.max_devices,
            binds_keys: config.credential_binding == CredentialBinding::Strict,
            reservation_ttl: config.reservation_ttl,
            max_reservation_ttl: config.max_reservation_ttl,
            retire: config.on_lapse == OnLapse::Retire,
            idempotency_window: config.idempotency_window,
            // A KeyPackage that ends in this very second has ended.
            min_remaining: config.min_remaining.max(Duration::from_secs(1)),
            hold_limits: limits
                .are_on()
                .then_some(HoldLimits { total: config.max_live_reservations, per_device: config.max_live_per_pair }),
            sweep: sweeper::Rules {
                retire: config.on_lapse == OnLapse::Retire,
                batch: config.sweep_batch,
                audit_retention: config.audit_retention,
                message_retention: config.message_retention,
            },
            message_retention: config.message_retention,
            queue_capacity: config.queue_capacity,
            health: status::Watermarks { target: config.pool_target.into(), low: config.low_watermark.into() },
        };
        let rules = Rules {
            ciphersuites: config.ciphersuites.clone(),
            max_lifetime: SignedDuration::try_from(config.max_lifetime)?,
            credential_binding: config.credential_binding,
        };
        let uploader = Uploader::new(
            store.clone(),
            rules,
            UploadLimits { capacity: config.pool_capacity, binds_keys: policy.binds_keys },
        )?;
        let room = config.max_waiting_requests as usize;
        let capacity = Capacity::of_process(config)?;
        let connections = Arc::new(Connections::new(&capacity));
        let queues = Queues::start(&store, &uploader, &clock, (policy.retire, room))?;
        Ok(Self {
            store,
            clock,
            queues,
            uploader,
            policy: Arc::new(policy),
            tokens: TokenCache::new(config.token_cache),
            limits: Arc::new(limits),
            provider: provider.map(Arc::new),
            fetches: Arc::new(Fetches::new(capacity.waits)),
            places: Arc::new(Semaphore::new(room)),
            bodies: Arc::new(Semaphore::new(capacity.bodies / 1024)),
            capacity,
            answers: Arc::new(Answers::new(capacity.answers, Arc::clone(&connections))),
            connections,
            generation: GenerationFile::of(config),
        })
    }

    /// Runs a verb of the store on a thread that may block. If too many requests wait already, fails at once: the client would give
    /// up before its turn.
    async fn block<T, E>(
        &self,
        verb: impl FnOnce(&Self, Timestamp) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        E: Send + 'static,
        Failure: From<E>,
    {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| self.overloaded())?;
        self.aside(move |pool, now| {
            // Held until the work is done, even where nobody waits for it any longer.
            let _place = place;
            verb(pool, now)
        })
        .await
    }

    /// The same without the bound on waiting requests: for work that must go on under overload.
    async fn aside<T, E>(
        &self,
        verb: impl FnOnce(&Self, Timestamp) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        E: Send + 'static,
        Failure: From<E>,
    {
        let (pool, request) = (self.clone(), tracing::Span::current());
        let result = web::block(move || {
            let _request = request.entered();
            verb(&pool, pool.clock.now())
        });
        Ok(result.await.map_err(|_| Self::not_finished())??)
    }

    /// Room for a body and what is made of it, until what this answers is dropped.
    pub(crate) fn room_for(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Failure> {
        let kib = (bytes * TAKES_OF_BODIES).div_ceil(1024);
        let reserved = if bytes > MODERATE_BODY { self.capacity.bodies / 1024 / 4 } else { 0 };
        let has_room = self.bodies.available_permits() >= kib + reserved;
        let kib = u32::try_from(kib).unwrap_or(u32::MAX);
        let room = if has_room { Arc::clone(&self.bodies).try_acquire_many_owned(kib).ok() } else { None };
        room.ok_or_else(|| {
            self.store.metrics().shed();
            Failure::new(
                ProblemType::Unavailable,
                "The server has too many large requests at once. Try again in a moment, or send less at a time.",
            )
        })
    }

    /// What this server does at the same time at most.
    pub(crate) fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// The connections of clients.
    pub(crate) fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    /// The answers under way.
    pub(crate) fn answers(&self) -> &Arc<Answers> {
        &self.answers
    }

    fn overloaded(&self) -> Failure {
        self.store.metrics().shed();
        Failure::new(ProblemType::Unavailable, "Too many requests wait for the database. Try again in a moment.")
    }

    fn not_finished() -> Failure {
        Failure::new(
            ProblemType::Unavailable,
            "The server did not finish the request: it is stopping, or its log shows a fault. Try again.",
        )
    }

    /// Takes up the database: one that was restored from a backup is fenced, unless the operator has it trusted. Blocks.
    ///
    /// # Errors
    /// When the database or its generation file cannot be read or written.
    pub(crate) fn resume(&self) -> anyhow::Result<()> {
        let Some(file) = &self.generation else { return Ok(()) };
        file.write(self.store.resume(file.read()?)?)
    }

    /// Records the signature keys of devices from before they were kept. Blocks.
    ///
    /// # Errors
    /// When the database fails.
    pub(crate) fn adopt_signature_keys(&self) -> Result<(), StoreError> {
        if !self.policy.binds_keys {
            return Ok(());
        }
        let keys = self.store.adopt_signature_keys(self.clock.now())?;
        if keys > 0 {
            tracing::info!(keys, "recorded the signature keys of KeyPackages from before they were kept");
        }
        Ok(())
    }

    /// Hears of messages that came by other servers of the same database, for as long as this pool is there.
    ///
    /// # Errors
    /// When the database cannot be listened to.
    pub(crate) fn listen(&self, config: &Config) -> anyhow::Result<()> {
        let fetches = Arc::downgrade(&self.fetches);
        self.store.listen(config, move |heard| match (fetches.upgrade(), heard) {
            (None, _) => ControlFlow::Break(()),
            (Some(fetches), Heard::For(devices)) => {
                fetches.ring(&devices);
                ControlFlow::Continue(())
            }
            (Some(fetches), Heard::Unsure) => {
                fetches.ring_all();
                ControlFlow::Continue(())
            }
        })
    }

    /// From now on no request waits for messages: the server stops.
    pub(crate) fn stop_waiting(&self) {
        self.fetches.close();
    }

    /// Whether the database answers, takes writes, and has the same time. Overload is no reason to send what comes to the other
    /// servers, which have as much.
    pub async fn ready(&self) -> Result<(), Failure> {
        self.aside(|pool, _| {
            pool.store.ping()?;
            pool.store.compare_clocks()?;
            Ok::<_, Failure>(pool.store.check_clock()?)
        })
        .await
    }

    /// The device that the token belongs to, which is counted as one that asks for something.
    pub(crate) async fn authenticate(&self, token: &Token, origin: Origin) -> Result<Option<Caller>, Failure> {
        let (hash, now) = (token.hash(), self.clock.now());
        let device = match self.tokens.get(&hash, now) {
            Remembered::Device(device) => Some(device),
            Remembered::Unknown => None,
            Remembered::Nothing => {
                self.strangers().admit(origin)?;
                let device = self.device_of_token(hash).await?.map(Arc::new);
                if device.is_none() {
                    self.strangers().count(origin);
                }
                // Only what was looked up is new: to renew what is remembered would be to remember it for ever.
                self.tokens.put(hash, device.as_ref(), now);
                device
            }
        };
        if let Some(device) = &device {
            self.limits.request(&device.user, 1)?;
        }
        Ok(device.map(|device| Caller { device, token_hash: hash }))
    }

    /// The limits by address, for requests without a known token.
    pub(crate) fn strangers(&self) -> &Strangers {
        self.limits.strangers()
    }

    /// Whether this is the operator's token.
    pub(crate) fn is_admin(&self, token: &str) -> bool {
        self.policy.admin.as_ref().is_some_and(|admin| admin.is_of(token))
    }

    /// What time makes of states.
    fn as_of(&self, now: Timestamp) -> AsOf {
        AsOf { now, retire: self.policy.retire }
    }

    /// Tidies up once: sees whether the database was restored, notes what has lapsed and expired, and forgets what may be
    /// forgotten. Where the clock is off, nothing is tidied up.
    pub async fn sweep(&self) -> Result<sweeper::Report, Failure> {
        self.limits.forget();
        self.aside(|pool, now| {
            pool.store.compare_clocks()?;
            pool.renew_witnesses()?;
            pool.store.check_clock()?;
            Ok::<_, Failure>(sweeper::sweep(&pool.store, pool.policy.sweep, now)?)
        })
        .await
    }

    /// Moves the generation of the database on, so that a backup that is made now is told from what comes after it. Blocks.
    fn renew_witnesses(&self) -> Result<(), StoreError> {
        let generation = self.store.renew_witnesses()?;
        if let Some(file) = &self.generation {
            file.write(generation).unwrap_or_else(|error| {
                tracing::warn!("{error:#}: a restored backup would not be noticed");
            });
        }
        Ok(())
    }

    /// Counts the KeyPackages of all pools, for the metrics.
    pub async fn census(&self) -> Result<(), Failure> {
        self.aside(|pool, _| sweeper::census(&pool.store)).await
    }
}

/// The time as the database keeps it: what is repeated is answered the same.
fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// A whole second, as the database keeps times.
fn after(second: i64, span: Duration) -> Result<Timestamp, Failure> {
    i64::try_from(span.as_secs())
        .ok()
        .and_then(|span| second.checked_add(span))
        .and_then(|second| Timestamp::from_second(second).ok())
        .ok_or_else(|| {
            Failure::new(
                ProblemType::Internal,
                "A duration in the configuration is too long; the operator has to lower it.",
            )
        })
}
