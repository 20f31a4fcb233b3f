//! The rules of the pool: who may hold what, how long, and how a pool is doing.

mod status;

use std::{sync::Arc, time::Duration};

use actix_web::web;
use jiff::{SignedDuration, Timestamp};
use keypool_openapi::{
    AcceptedKeyPackage, Base64Bytes, Device, DeviceList, DeviceName, MAX_UPLOAD_BATCH, MissingDevice, MissingReason,
    PoolStatus, ProblemType, RegisterRequest, RegisterResponse, RejectedKeyPackage, RejectionReason, ReleaseRequest,
    ReleaseResponse, Reservation, ReserveRequest, ReserveResponse, SpendRequest, SpendResponse, UploadRequest,
    UploadResponse, UserName,
};
use uuid::Uuid;

use crate::{
    auth::Token,
    clock::Clock,
    config::Config,
    key_package::{Rejection, Rules, ValidatedKeyPackage},
    problem::Failure,
    store::{
        DeviceRow, Miss, RegisterError, Release, Reserve, ReserveError, Reserved, ReservedKeyPackage, Spend,
        SpendError, Store, UploadLimits, UploadOutcome,
    },
};

/// The most bytes that a group id may have: they go into the audit trail.
const MAX_GROUP_ID: usize = 256;

/// What the operator decides.
#[derive(Clone, Debug)]
struct Policy {
    reservation_ttl: Duration,
    max_reservation_ttl: Duration,
    min_remaining: Duration,
    limits: UploadLimits,
    rules: Rules,
    health: status::Watermarks,
}

/// The pool service: the rules over the store. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    store: Store,
    clock: Arc<dyn Clock>,
    policy: Arc<Policy>,
}

impl Pool {
    /// The pool in this store, by this configuration and clock.
    ///
    /// # Errors
    /// When `max_lifetime` is longer than time itself.
    pub fn new(store: Store, clock: Arc<dyn Clock>, config: &Config) -> anyhow::Result<Self> {
        let policy = Policy {
            reservation_ttl: config.reservation_ttl,
            max_reservation_ttl: config.max_reservation_ttl,
            min_remaining: config.min_remaining,
            limits: UploadLimits { capacity: config.pool_capacity },
            rules: Rules {
                ciphersuites: config.ciphersuites.clone(),
                max_lifetime: SignedDuration::try_from(config.max_lifetime)?,
                credential_binding: config.credential_binding,
            },
            health: status::Watermarks { target: config.pool_target.into(), low: config.low_watermark.into() },
        };
        Ok(Self { store, clock, policy: Arc::new(policy) })
    }

    /// Runs a verb of the store where it may block.
    async fn block<T, E>(
        &self,
        verb: impl FnOnce(&Self, Timestamp) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        E: Send + 'static,
        Failure: From<E>,
    {
        let pool = self.clone();
        let result = web::block(move || verb(&pool, pool.clock.now())).await.map_err(|_| {
            Failure::new(
                ProblemType::Unavailable,
                "The server did not finish the request: it is stopping, or its log shows a fault. Try again.",
            )
        })?;
        Ok(result?)
    }

    /// Whether the database answers.
    pub async fn ready(&self) -> Result<(), Failure> {
        self.block(|pool, _| pool.store.ping()).await
    }

    /// The device that the token belongs to.
    pub async fn authenticate(&self, token: Token) -> Result<Option<DeviceRow>, Failure> {
        self.block(move |pool, _| pool.store.authenticate(&token.hash())).await
    }

    /// Registers a device: of a new user, or of the caller's own.
    pub async fn register(
        &self,
        request: RegisterRequest,
        caller: Option<DeviceRow>,
    ) -> Result<RegisterResponse, Failure> {
        let RegisterRequest { user, device } = request;
        self.block(move |pool, now| {
            let token = Token::generate()?;
            let caller_user = caller.as_ref().map(|caller| &caller.user);
            match pool.store.register(&user, &device, &token.hash(), caller_user, now) {
                Ok(()) => Ok(RegisterResponse { user, device, token: token.reveal().to_owned() }),
                Err(RegisterError::Store(error)) => Err(error.into()),
                Err(RegisterError::AlreadyRegistered) => Err(Failure::new(
                    ProblemType::AlreadyRegistered,
                    format!("{user} has a device {device} already. Choose another name for the new device."),
                )),
                Err(RegisterError::NotThatUser) => Err(Failure::new(
                    if caller.is_some() { ProblemType::Forbidden } else { ProblemType::Unauthenticated },
                    format!("{user} is known: a further device is registered with the bearer token of one they have."),
                )),
            }
        })
        .await
    }

    /// The devices of a user.
    pub async fn devices(&self, user: UserName) -> Result<DeviceList, Failure> {
        self.block(move |pool, _| {
            let devices = pool.store.devices(&user)?.ok_or_else(|| unknown_user(&user))?;
            let device = |row: DeviceRow| Device { device: row.device, registered_at: row.registered_at };
            Ok::<_, Failure>(DeviceList { devices: devices.into_iter().map(device).collect(), user })
        })
        .await
    }

    /// Takes KeyPackages into the caller's pool, each judged on its own.
    pub async fn upload(&self, caller: DeviceRow, request: UploadRequest) -> Result<UploadResponse, Failure> {
        let packages = request.keypackages;
        if packages.is_empty() || packages.len() > MAX_UPLOAD_BATCH {
            return Err(Failure::new(
                ProblemType::MalformedRequest,
                format!("The upload has {} KeyPackages; send 1 to {MAX_UPLOAD_BATCH} at a time.", packages.len()),
            ));
        }
        self.block(move |pool, now| pool.upload_blocking(&caller, &packages, now)).await
    }

    fn upload_blocking(
        &self,
        caller: &DeviceRow,
        packages: &[String],
        now: Timestamp,
    ) -> Result<UploadResponse, Failure> {
        let (mut valid, mut indexes, mut rejected) = (Vec::new(), Vec::new(), Vec::new());
        for (index, text) in packages.iter().enumerate() {
            match self.validate(caller, text, now) {
                Ok(package) => {
                    valid.push(package);
                    indexes.push(index);
                }
                Err(Rejection { reason, detail }) => rejected.push(RejectedKeyPackage { index, reason, detail }),
            }
        }
        let mut accepted = Vec::new();
        if !valid.is_empty() {
            let outcomes = self.store.upload(caller.id, &valid, self.policy.limits, now)?;
            for ((index, package), outcome) in indexes.into_iter().zip(valid).zip(outcomes) {
                match outcome {
                    UploadOutcome::Stored | UploadOutcome::Known => accepted.push(accept(index, package)),
                    UploadOutcome::Refused(reason) => {
                        let detail = self.refusal(reason, &package);
                        rejected.push(RejectedKeyPackage { index, reason, detail });
                    }
                }
            }
        }
        rejected.sort_by_key(|rejection| rejection.index);
        if rejected.len() == packages.len() && rejected.iter().all(|r| r.reason == RejectionReason::PoolFull) {
            return Err(Failure::new(ProblemType::PoolFull, rejected.swap_remove(0).detail));
        }
        let pool = self.status_blocking(caller, now)?;
        Ok(UploadResponse { accepted, rejected, pool })
    }

    fn validate(&self, caller: &DeviceRow, text: &str, now: Timestamp) -> Result<ValidatedKeyPackage, Rejection> {
        let bytes = Base64Bytes::decode(text)
            .map_err(|error| Rejection { reason: RejectionReason::Malformed, detail: format!("{error}.") })?;
        ValidatedKeyPackage::parse(bytes.0, (&caller.user, &caller.device), &self.policy.rules, now)
    }

    fn refusal(&self, reason: RejectionReason, package: &ValidatedKeyPackage) -> String {
        let (name, suite) = (&package.keypackage_ref, package.ciphersuite);
        match reason {
            RejectionReason::Duplicate => format!(
                "KeyPackage {name} stands twice in this upload, or was spent, revoked or expired before. Generate a new one."
            ),
            RejectionReason::InitKeyReused => format!(
                "KeyPackage {name} has an init key or encryption key that an earlier one had. Generate one with new keys."
            ),
            RejectionReason::SecondLastResort => {
                format!("This upload has a last resort of ciphersuite {suite} already. Send one of each ciphersuite.")
            }
            _ => format!(
                "The pool holds {} KeyPackages of ciphersuite {suite}, and takes no more. Upload again when some are spent.",
                self.policy.limits.capacity
            ),
        }
    }

    /// Reserves a KeyPackage of each device of a user, or of the one that is named.
    pub async fn reserve(&self, caller: DeviceRow, request: ReserveRequest) -> Result<ReserveResponse, Failure> {
        let ttl = self.ttl(request.ttl)?;
        let group_id = request.group_id.map(group_id).transpose()?;
        self.block(move |pool, now| {
            let now_second = now.as_second();
            let want = Reserve {
                user: request.target_user,
                device: request.device,
                ciphersuite: request.ciphersuite,
                group_id,
                by: caller.id,
                nonce: Uuid::new_v4(),
                until: after(now_second, ttl)?,
                usable_until: after(now_second, pool.policy.min_remaining)?,
            };
            let outcome = pool.store.reserve(std::slice::from_ref(&want), now)?.pop();
            match outcome {
                Some(Ok(reserved)) => answer(want, reserved),
                Some(Err(ReserveError::UnknownDevice)) => Err(unknown_device(&want.user, want.device.as_ref())),
                Some(Err(ReserveError::UnknownUser)) | None => Err(unknown_user(&want.user)),
            }
        })
        .await
    }

    fn ttl(&self, wanted: Option<u64>) -> Result<Duration, Failure> {
        let ttl = wanted.map_or(self.policy.reservation_ttl, Duration::from_secs);
        let longest = self.policy.max_reservation_ttl;
        if ttl.is_zero() || ttl > longest {
            return Err(Failure::new(
                ProblemType::MalformedRequest,
                format!("A ttl of {} s cannot be had: ask for 1 to {} s.", ttl.as_secs(), longest.as_secs()),
            ));
        }
        Ok(ttl)
    }

    /// Spends a reservation.
    pub async fn spend(&self, caller: DeviceRow, request: SpendRequest) -> Result<SpendResponse, Failure> {
        let id = request.reservation_id;
        let want = Spend { reservation: id, by: caller.id, group_id: group_id(request.group_id)? };
        self.block(move |pool, now| {
            let now = whole_second(now)?;
            match pool.store.spend(&[want], now)?.pop() {
                Some(Ok(spent)) => Ok(SpendResponse {
                    keypackage_ref: spent.keypackage_ref,
                    state: spent.state,
                    spent_at: spent.spent_at,
                }),
                Some(Err(error)) => Err(lost_reservation(error, &id)),
                None => Err(lost_reservation(SpendError::Unknown, &id)),
            }
        })
        .await
    }

    /// Releases a reservation.
    pub async fn release(&self, caller: DeviceRow, request: ReleaseRequest) -> Result<ReleaseResponse, Failure> {
        let id = request.reservation_id;
        let release = Release { reservation: id, by: caller.id };
        self.block(move |pool, now| match pool.store.release(&[release], now)?.pop() {
            Some(Ok(released)) => {
                Ok(ReleaseResponse { keypackage_ref: released.keypackage_ref, state: released.state })
            }
            Some(Err(error)) => Err(lost_reservation(error, &id)),
            None => Err(lost_reservation(SpendError::Unknown, &id)),
        })
        .await
    }

    /// How the caller's pool is doing.
    pub async fn status(&self, caller: DeviceRow) -> Result<PoolStatus, Failure> {
        self.block(move |pool, now| pool.status_blocking(&caller, now)).await
    }

    fn status_blocking(&self, caller: &DeviceRow, now: Timestamp) -> Result<PoolStatus, Failure> {
        let contents = self.store.contents(caller.id)?;
        Ok(status::summarise(caller, &contents, self.policy.health, now))
    }
}

fn accept(index: usize, package: ValidatedKeyPackage) -> AcceptedKeyPackage {
    AcceptedKeyPackage {
        index,
        keypackage_ref: package.keypackage_ref,
        ciphersuite: package.ciphersuite,
        not_after: package.not_after,
        last_resort: package.last_resort,
    }
}

/// The answer to a wish: what was reserved, or the problem where nothing at all was.
fn answer(want: Reserve, reserved: Reserved) -> Result<ReserveResponse, Failure> {
    if reserved.reservations.is_empty() {
        return Err(nothing(&want, &reserved.missing));
    }
    let user = want.user;
    let reservation = |one: ReservedKeyPackage| Reservation {
        reservation_id: one.id,
        user: user.clone(),
        device: one.device,
        keypackage_ref: one.keypackage_ref,
        keypackage: Base64Bytes(one.bytes),
        ciphersuite: one.ciphersuite,
        not_after: one.not_after,
        expires_at: want.until,
        last_resort: one.last_resort,
    };
    let missing = |miss: Miss| MissingDevice { user: user.clone(), device: miss.device, reason: miss.reason };
    Ok(ReserveResponse {
        reservations: reserved.reservations.into_iter().map(reservation).collect(),
        missing: reserved.missing.into_iter().map(missing).collect(),
    })
}

fn nothing(want: &Reserve, missing: &[Miss]) -> Failure {
    let user = &want.user;
    let has = |reason| missing.iter().any(|miss| miss.reason == reason);
    if has(MissingReason::PoolExpired) {
        return Failure::new(
            ProblemType::PoolExpired,
            format!(
                "All KeyPackages of {user} expire too soon to be handed out. A device of {user} has to refresh its pool."
            ),
        );
    }
    if has(MissingReason::NoMatchingCiphersuite) {
        let mut suites: Vec<_> = missing.iter().flat_map(|miss| &miss.ciphersuites).map(u16::to_string).collect();
        suites.sort_unstable();
        suites.dedup();
        return Failure::new(
            ProblemType::NoMatchingCiphersuite,
            format!("{user} has no KeyPackage of the ciphersuite asked for, but of: {}.", suites.join(", ")),
        );
    }
    Failure::new(
        ProblemType::PoolExhausted,
        format!("No KeyPackage of {user} is left. Try again when a device of {user} has refreshed its pool."),
    )
}

fn lost_reservation(error: SpendError, id: &keypool_openapi::ReservationId) -> Failure {
    match error {
        SpendError::Unknown => Failure::new(
            ProblemType::UnknownReservation,
            format!("There never was a reservation {id}. Give the id back exactly as reserve answered it."),
        ),
        SpendError::NotYours => Failure::new(
            ProblemType::NotYourReservation,
            format!("Reservation {id} was made by another device, which alone can spend or release it."),
        ),
        SpendError::AlreadySpent => Failure::new(
            ProblemType::AlreadySpent,
            format!("Reservation {id} was spent for another group. Reserve another KeyPackage for this one."),
        ),
        SpendError::Lapsed => Failure::new(
            ProblemType::ReservationLapsed,
            format!("Reservation {id} lapsed, and its KeyPackage is no longer held for you. Reserve another one."),
        ),
    }
}

fn unknown_user(user: &UserName) -> Failure {
    Failure::new(ProblemType::UnknownUser, format!("There is no user {user}. Check the name; it is case-sensitive."))
}

fn unknown_device(user: &UserName, device: Option<&DeviceName>) -> Failure {
    let device = device.map_or("any device", DeviceName::as_str);
    Failure::new(
        ProblemType::UnknownDevice,
        format!("{user} does not have {device}. GET /users/{user}/devices lists what there is."),
    )
}

fn group_id(id: Base64Bytes) -> Result<Vec<u8>, Failure> {
    if id.0.is_empty() || id.0.len() > MAX_GROUP_ID {
        return Err(Failure::new(
            ProblemType::MalformedRequest,
            format!("The group_id has {} bytes; a group id has 1 to {MAX_GROUP_ID}.", id.0.len()),
        ));
    }
    Ok(id.0)
}

fn whole_second(time: Timestamp) -> Result<Timestamp, Failure> {
    after(time.as_second(), Duration::ZERO)
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
                "A configured duration reaches past the end of time; the operator has to lower it.",
            )
        })
}
