//! What leaves the pool: reserve, spend, release.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;
use keypool_openapi::{
    Base64Bytes, MissingDevice, MissingReason, ProblemType, ReleaseRequest, ReleaseResponse, ReserveRequest,
    ReserveResponse, SpendRequest, SpendResponse, UserName,
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{Pool, after};
use crate::{
    auth::{Caller, unknown_token},
    limits::seconds,
    metrics::{LAST_RESORT, Metrics, RESERVED},
    problem::{About, Failure},
    store::{IdempotencyKey, Release, Reserve, ReserveError, Spend, SpendError},
};

/// The most bytes that a group id may have: they go into the audit trail.
const MAX_GROUP_ID: usize = 256;

/// When reservations that somebody holds may have lapsed, and others are possible.
const HELD_RETRY: Duration = Duration::from_secs(10);

impl Pool {
    /// Reserves a KeyPackage of each device of some users, or of the one that is named. With an idempotency key, a
    /// repetition is answered the same.
    pub async fn reserve(
        &self,
        caller: Caller,
        request: ReserveRequest,
        key: Option<[u8; 32]>,
    ) -> Result<ReserveResponse, Failure> {
        // What another holds would look as if its time were over.
        self.store.check_clock()?;
        let ttl = self.ttl(request.ttl)?;
        let digest = digest(&request)?;
        let group_id = request.group_id.map(group_id).transpose()?;
        let users = targets(request.target_user, request.targets)?;
        // The request itself was counted already.
        self.limits.request(&caller.device.user, users.len() - 1)?;
        let (users, refused) = self.within_limits(&caller.device.user, users, ttl)?;
        let now = self.clock.now();
        let second = now.as_second();
        let want = Reserve {
            users,
            refused,
            device: request.device,
            ciphersuite: request.ciphersuite,
            group_id,
            by: caller.shown_token(),
            nonce: Uuid::new_v4(),
            until: after(second, ttl)?,
            usable_until: after(second, self.policy.min_remaining)?,
            by_user: caller.device.user.clone(),
            limits: self.policy.hold_limits,
            repeat: key.map(|key| self.repeat(key, digest, second)).transpose()?,
        };
        match self.reserve_batched(want).await? {
            Ok(reserved) => {
                count(self.store.metrics(), &reserved);
                let single_use = reserved.reservations.iter().filter(|one| !one.last_resort).count();
                self.limits.reserved(&caller.device.user, single_use);
                answer(reserved)
            }
            Err(error) => Err(self.refused(error, now)),
        }
    }

    /// The users that the caller may reserve of now, and those that it may not; a failure where that is all.
    fn within_limits(
        &self,
        requester: &UserName,
        users: BTreeSet<UserName>,
        ttl: Duration,
    ) -> Result<(BTreeSet<UserName>, Vec<MissingDevice>), Failure> {
        let (mut within, mut refused, mut longest) = (BTreeSet::new(), Vec::new(), Duration::ZERO);
        for user in users {
            match self.limits.pair(requester, &user, ttl) {
                Ok(()) => drop(within.insert(user)),
                Err(wait) => {
                    longest = longest.max(wait);
                    let (device, reason, ciphersuites) = (None, MissingReason::TooManyRequests, Vec::new());
                    refused.push(MissingDevice { user, device, reason, ciphersuites });
                }
            }
        }
        if within.is_empty() {
            let names: Vec<_> = refused.iter().map(|one| one.user.as_str()).collect();
            let detail = format!(
                "{requester} reserves the KeyPackages of {} too often. Try again in {} s.",
                names.join(", "),
                seconds(longest)
            );
            return Err(Failure { about: About::Missing(refused), ..Failure::too_many(detail, longest) });
        }
        Ok((within, refused))
    }

    fn repeat(&self, key: [u8; 32], request: [u8; 32], now: i64) -> Result<IdempotencyKey, Failure> {
        // No reservation lives longer than this window: the configuration sees to that.
        Ok(IdempotencyKey { key, request, until: after(now, self.policy.idempotency_window)? })
    }

    fn refused(&self, error: ReserveError, now: Timestamp) -> Failure {
        match error {
            ReserveError::TokenRevoked => unknown_token(),
            ReserveError::IdempotencyMismatch => Failure::new(
                ProblemType::IdempotencyMismatch,
                "The Idempotency-Key came with another request before. Use a new key for each request, and the same one \
                 only to repeat it.",
            ),
            ReserveError::TooManyHeld(until) => {
                let wait = Duration::try_from(until.duration_since(now)).unwrap_or_default();
                let most = self.policy.hold_limits.map_or(0, |limits| limits.total);
                Failure::too_many(
                    format!(
                        "A device may hold {most} reservations at the same time. Spend or release some; the first one \
                         lapses in {} s.",
                        seconds(wait)
                    ),
                    wait,
                )
            }
        }
    }

    fn ttl(&self, wanted: Option<u64>) -> Result<Duration, Failure> {
        let ttl = wanted.map_or(self.policy.reservation_ttl, Duration::from_secs);
        let longest = self.policy.max_reservation_ttl;
        if ttl.is_zero() || ttl > longest {
            return Err(Failure::new(
                ProblemType::MalformedRequest,
                format!("`ttl` must be 1 to {} seconds; got {}.", longest.as_secs(), ttl.as_secs()),
            ));
        }
        Ok(ttl)
    }

    /// Spends a reservation.
    pub async fn spend(&self, caller: Caller, request: SpendRequest) -> Result<SpendResponse, Failure> {
        let id = request.reservation_id;
        let user = caller.device.user.clone();
        let want = Spend { reservation: id, by: caller.shown_token(), group_id: group_id(request.group_id)? };
        let spent = self.spend_batched(want).await?.map_err(|error| lost_reservation(error, &id))?;
        self.limits.spent(&user, 1);
        Ok(SpendResponse { keypackage_ref: spent.keypackage_ref, state: spent.state, spent_at: spent.spent_at })
    }

    /// Releases a reservation.
    pub async fn release(&self, caller: Caller, request: ReleaseRequest) -> Result<ReleaseResponse, Failure> {
        let id = request.reservation_id;
        let release = Release { reservation: id, by: caller.shown_token() };
        self.block(move |pool, now| match pool.store.release(&[release], pool.as_of(now))?.pop() {
            Some(Ok(released)) => {
                Ok(ReleaseResponse { keypackage_ref: released.keypackage_ref, state: released.state })
            }
            Some(Err(error)) => Err(lost_reservation(error, &id)),
            None => Err(lost_reservation(SpendError::Unknown, &id)),
        })
        .await
    }
}

/// The users of a request, each once.
fn targets(one: Option<UserName>, many: Option<Vec<UserName>>) -> Result<BTreeSet<UserName>, Failure> {
    if one.is_none() && many.is_none() || many.as_ref().is_some_and(Vec::is_empty) {
        return Err(Failure::new(
            ProblemType::MalformedRequest,
            "The request names nobody. Send `target_user`, or `targets` with 1 to 100 users.",
        ));
    }
    Ok(one.into_iter().chain(many.into_iter().flatten()).collect())
}

/// What tells whether a request with the same idempotency key is the same request.
fn digest(request: &ReserveRequest) -> Result<[u8; 32], Failure> {
    let bytes = serde_json::to_vec(request).map_err(|error| {
        tracing::error!(%error, "a request cannot be written as JSON");
        Failure::new(ProblemType::Internal, "The server cannot tell this request from others; its log says why.")
    })?;
    Ok(Sha256::digest(bytes).into())
}

fn count(metrics: &Metrics, reserved: &ReserveResponse) {
    let last_resorts = reserved.reservations.iter().filter(|reservation| reservation.last_resort).count();
    metrics.reserved(LAST_RESORT, last_resorts as u64);
    metrics.reserved(RESERVED, (reserved.reservations.len() - last_resorts) as u64);
    for missing in &reserved.missing {
        metrics.reserved(missing.reason.into(), 1);
    }
}

/// The answer to a wish: what was reserved, or the problem where nothing at all was.
fn answer(reserved: ReserveResponse) -> Result<ReserveResponse, Failure> {
    if reserved.reservations.is_empty() { Err(nothing(reserved.missing)) } else { Ok(reserved) }
}

/// The problem that names the reason that is the easiest to do something about, and whom it concerns.
fn nothing(missing: Vec<MissingDevice>) -> Failure {
    let with = |reason| {
        let mut users: Vec<_> = missing.iter().filter(|miss| miss.reason == reason).map(|m| m.user.as_str()).collect();
        users.dedup();
        (!users.is_empty()).then(|| users.join(", "))
    };
    let (kind, detail) = if let Some(users) = with(MissingReason::ReservationLapsed) {
        let detail = format!(
            "The reservations that this Idempotency-Key made of {users} lapsed, or were spent, released or revoked. Reserve \
             again with a new key."
        );
        (ProblemType::ReservationLapsed, detail)
    } else if let Some(users) = with(MissingReason::PoolExpired) {
        let detail = format!(
            "All KeyPackages of {users} expire too soon to be handed out. A device of theirs has to refresh its pool."
        );
        (ProblemType::PoolExpired, detail)
    } else if let Some(users) = with(MissingReason::NoMatchingCiphersuite) {
        let suites: BTreeSet<_> = missing.iter().flat_map(|miss| &miss.ciphersuites).collect();
        let suites = suites.into_iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
        let detail =
            format!("{users} has no KeyPackage of the ciphersuite asked for, but of: {suites}. Ask for one of these.");
        (ProblemType::NoMatchingCiphersuite, detail)
    } else if let Some(users) = with(MissingReason::PoolExhausted) {
        let detail =
            format!("No KeyPackage of {users} is left. Try again when a device of theirs has refreshed its pool.");
        (ProblemType::PoolExhausted, detail)
    } else if let Some(users) = with(MissingReason::UnknownDevice) {
        let detail = format!("{users} has no such device. GET /users/USER/devices lists the devices of a user.");
        (ProblemType::UnknownDevice, detail)
    } else if let Some(users) = with(MissingReason::UnknownUser) {
        (ProblemType::UnknownUser, format!("There is no user {users}. Check the name; it is case-sensitive."))
    } else {
        let users = with(MissingReason::TooManyRequests).unwrap_or_default();
        let detail = format!(
            "The caller's user holds as many KeyPackages of {users} as it may. Spend or release some of them, or try again when \
             they lapse."
        );
        return Failure { about: About::Missing(missing), ..Failure::too_many(detail, HELD_RETRY) };
    };
    Failure { about: About::Missing(missing), ..Failure::new(kind, detail) }
}

pub(super) fn lost_reservation(error: SpendError, id: &keypool_openapi::ReservationId) -> Failure {
    match error {
        SpendError::TokenRevoked => unknown_token(),
        SpendError::Unknown => Failure::new(
            ProblemType::UnknownReservation,
            format!(
                "There is no reservation {id}, or its KeyPackage expired so long ago that it is forgotten. Give the id back \
                 exactly as reserve answered it."
            ),
        ),
        SpendError::NotYours => Failure::new(
            ProblemType::NotYourReservation,
            format!("Reservation {id} was made by another device, which alone can spend or release it."),
        ),
        SpendError::AlreadySpent => Failure::new(
            ProblemType::AlreadySpent,
            format!("Reservation {id} is spent already, and a KeyPackage is used once. Reserve another one."),
        ),
        SpendError::Lapsed => Failure::new(
            ProblemType::ReservationLapsed,
            format!("Reservation {id} lapsed, and its KeyPackage is no longer held for you. Reserve another one."),
        ),
    }
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
