//! Reserve: an adder reserves KeyPackages of other users.

use std::{collections::BTreeSet, time::Duration};

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::{MissingDevice, MissingReason, ProblemType, ReserveRequest, ReserveResponse, UserName};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    Service,
    reservations::{bind, group_id},
    times::after,
};
use crate::{
    caller::Caller,
    metrics::{LAST_RESORT, Metrics, RESERVED},
    problem::{About, Failure, unknown_token, whole_seconds},
    store::{IdempotencyKey, Reserve, ReserveError, Wanted},
};

/// Suggested delay when the caller holds too much: by then some of its reservations may have lapsed.
const HELD_RETRY: Duration = Duration::from_secs(10);

impl Service {
    /// Reserves a KeyPackage of each device of some users, or of one named device. With an idempotency key, a
    /// repetition gets the same answer.
    pub async fn reserve(
        &self,
        caller: Caller,
        request: ReserveRequest,
        key: Option<[u8; 32]>,
    ) -> Result<ReserveResponse, Failure> {
        // With a wrong clock, reservations of other adders would seem to have lapsed.
        self.store.check_clock()?;
        let ttl = self.ttl(request.ttl)?;
        let digest = digest(&request)?;
        let now = self.work.now();
        let wanted = wanted(&request, now)?;
        let group_id = request.group_id.map(group_id).transpose()?;
        let bind = bind(request.bind, request.proof)?;
        let users = targets(request.target_user, request.targets)?;
        let all = users.len() as u64;
        // The first user was already counted with the request itself.
        let allowed = self.limits.request(&caller.device.user, users.len() - 1);
        let within = allowed.and_then(|()| self.within_limits(&caller.device.user, users, ttl));
        let (users, refused) = within.inspect_err(|_| self.count_refused(all))?;
        let second = now.as_second();
        let want = Reserve {
            users,
            refused,
            device: request.device,
            wanted,
            group_id,
            bind,
            proof: request.proof,
            by: caller.shown_token(),
            nonce: Uuid::new_v4(),
            until: after(second, ttl)?,
            by_user: caller.device.user.clone(),
            limits: self.policy.hold_limits,
            repeat: key.map(|key| self.repeat(key, digest, second)).transpose()?,
        };
        match self.batches.reserve.run(want).await? {
            Ok(reserved) => {
                count(self.store.metrics(), &reserved);
                let single_use = reserved.reservations.iter().filter(|one| !one.last_resort).count();
                self.limits.reserved(&caller.device.user, single_use);
                answer(reserved)
            }
            Err(error) => {
                if let ReserveError::TooManyHeld(_) = error {
                    self.count_refused(all);
                }
                Err(self.refused(error, now))
            }
        }
    }

    /// Counts a request whose caller asked for too much.
    fn count_refused(&self, users: u64) {
        self.store.metrics().reserved(MissingReason::TooManyRequests.into(), users);
    }

    /// Returns the users that the caller may reserve from now, and the users that it may not. Fails if it may reserve
    /// from none.
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
                whole_seconds(longest)
            );
            return Err(Failure { about: About::Missing(refused), ..Failure::too_many(detail, longest) });
        }
        Ok((within, refused))
    }

    fn repeat(&self, key: [u8; 32], request: [u8; 32], now: i64) -> Result<IdempotencyKey, Failure> {
        // The configuration ensures that no reservation is longer than this window.
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
                        whole_seconds(wait)
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
}

/// Returns the users of a request, each once.
fn targets(one: Option<UserName>, many: Option<Vec<UserName>>) -> Result<BTreeSet<UserName>, Failure> {
    if one.is_none() && many.is_none() || many.as_ref().is_some_and(Vec::is_empty) {
        return Err(Failure::new(
            ProblemType::MalformedRequest,
            "The request names nobody. Send `target_user`, or `targets` with 1 to 100 users.",
        ));
    }
    Ok(one.into_iter().chain(many.into_iter().flatten()).collect())
}

/// Returns the digest that tells whether two requests with the same idempotency key are the same request.
/// What the KeyPackages have to be like.
fn wanted(request: &ReserveRequest, now: Timestamp) -> Result<Wanted, Failure> {
    if request.ciphersuite.is_some() && !request.ciphersuites.is_empty() {
        return Err(Failure::new(
            ProblemType::MalformedRequest,
            "`ciphersuite` and `ciphersuites` say the same in two ways. Send one of them.",
        ));
    }
    let mut ciphersuites: Vec<_> = request.ciphersuite.into_iter().collect();
    for suite in &request.ciphersuites {
        if !ciphersuites.contains(suite) {
            ciphersuites.push(*suite);
        }
    }
    let span = SignedDuration::from_secs(request.min_lifetime.unwrap_or_default().into());
    let valid_until = now.saturating_add(span).unwrap_or(Timestamp::MAX);
    Ok(Wanted { ciphersuites, last_resort: request.last_resort.unwrap_or(true), valid_until })
}

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

/// Returns the answer to a request: the reservations, or a problem if there are none.
fn answer(reserved: ReserveResponse) -> Result<ReserveResponse, Failure> {
    if reserved.reservations.is_empty() { Err(nothing(reserved.missing)) } else { Ok(reserved) }
}

/// Returns the problem for the reason that is the easiest to act on, and the devices that it concerns.
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
