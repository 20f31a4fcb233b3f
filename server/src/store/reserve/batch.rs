//! Many reservations in one statement, on `PostgreSQL`.
//!
//! It takes only fresh KeyPackages that no other transaction has locked. It waits for another transaction only if that
//! one has the same `Idempotency-Key`, so two batches never deadlock. Every other case changes nothing here and is
//! served alone.

use std::collections::{HashMap, HashSet};

use diesel::{
    prelude::*,
    result::{DatabaseErrorKind, Error},
};
use keypool_openapi::{Base64Bytes, DeviceName, Reservation, ReservationId, ReserveResponse, UserName};

use super::{
    request::{Reserve, in_order},
    take::{self, Repeat, Taken, Target},
};
use crate::store::{
    as_of::AsOf,
    database::{
        StoreError,
        rows::{DeviceId, suite, timestamp},
    },
};

/// A user that is closer to a limit than this, for each user that its request names, is counted exactly and alone.
const NEAR: i64 = 16;

/// Serves requests, each completely. An element is `None` if its request must be served alone.
pub(super) fn reserve(
    conn: &mut PgConnection,
    requests: &[Reserve],
    as_of: AsOf,
) -> Result<Vec<Option<ReserveResponse>>, StoreError> {
    let shared = shared_keys(requests);
    let is_plain = |request: &Reserve| {
        i64::try_from(request.users.len()).is_ok_and(|users| users <= take::MOST_DEVICES)
            && request.repeat.as_ref().is_none_or(|key| !shared.contains(&(request.by.device, key.key)))
    };
    let missing = requests.iter().map(|request| serde_json::to_string(&request.refused).map_err(StoreError::fatal));
    let missing = missing.collect::<Result<Vec<_>, _>>()?;
    let spares = spares(requests);
    let mut targets = Vec::new();
    for ((number, request), missing) in
        (0_i64..).zip(requests).zip(&missing).filter(|((_, request), _)| is_plain(request))
    {
        // Where the most wanted ciphersuite has no fresh one, the request is served alone.
        let suites = request.wanted.suites()[0];
        let mut spare = spares.get(&request.by_user).copied();
        let mut token = Some(request.by.token_hash.as_slice());
        for user in &request.users {
            targets.push(Target {
                request: number,
                user: user.as_str(),
                device: request.device.as_ref().map(DeviceName::as_str),
                suites,
                nonce: request.nonce.as_bytes(),
                actor: request.by.device.0,
                until: request.until.as_second(),
                usable_until: request.wanted.usable_until(as_of),
                group_id: request.group_id.as_deref(),
                bind: request.bind.as_ref().map(<[u8; 32]>::as_slice),
                // Only the first target of each request has these.
                token: token.take(),
                spare: spare.take(),
                repeat: request.repeat.as_ref().map(|key| Repeat { key, missing }),
            });
        }
    }
    let mut served = answers(requests, take(conn, &targets, as_of.now.as_second())?)?;
    Ok((0_i64..).take(requests.len()).map(|number| served.remove(&number)).collect())
}

/// Takes KeyPackages for requests. If another request brings the same key at the same time, runs the statement again:
/// it then sees the key, and that request is served alone.
fn take(conn: &mut PgConnection, targets: &[Target<'_>], now: i64) -> QueryResult<Vec<Taken>> {
    match take::take(conn, targets, now) {
        Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _)) => take::take(conn, targets, now),
        taken => taken,
    }
}

/// Returns the keys that occur more than once in this batch, with their callers. Their requests are served alone.
fn shared_keys(requests: &[Reserve]) -> HashSet<(DeviceId, [u8; 32])> {
    let mut seen = HashSet::new();
    let keys = requests.iter().filter_map(|request| Some((request.by.device, request.repeat.as_ref()?.key)));
    keys.filter(|key| !seen.insert(*key)).collect()
}

/// Returns how many reservations each limited user may already hold for this batch to stay clear of every limit. A
/// request takes one KeyPackage of a device.
fn spares(requests: &[Reserve]) -> HashMap<&UserName, i64> {
    let mut spares = HashMap::new();
    for request in requests {
        let Some(limits) = request.limits else { continue };
        let users = i64::try_from(request.users.len()).unwrap_or(i64::MAX);
        let (total, of_one): &mut (i64, i64) =
            spares.entry(&request.by_user).or_insert((limits.total.into(), limits.per_device.into()));
        *total = total.saturating_sub(users.saturating_mul(NEAR));
        *of_one -= 1;
    }
    spares.into_iter().map(|(user, (total, of_one))| (user, total.min(of_one))).collect()
}

/// Returns the answers by the request's number in the batch.
fn answers(requests: &[Reserve], taken: Vec<Taken>) -> Result<HashMap<i64, ReserveResponse>, StoreError> {
    let mut served: HashMap<i64, ReserveResponse> = HashMap::new();
    for (number, owner, user, device, keypackage_ref, bytes, ciphersuite, not_after) in taken {
        let request = usize::try_from(number).ok().and_then(|number| requests.get(number));
        let request = request
            .ok_or_else(|| StoreError::fatal(anyhow::anyhow!("no request is for a KeyPackage that was taken")))?;
        let answer = served
            .entry(number)
            .or_insert_with(|| ReserveResponse { reservations: Vec::new(), missing: request.refused.clone() });
        answer.reservations.push(Reservation {
            reservation_id: ReservationId { owner, nonce: request.nonce },
            user: user.try_into().map_err(StoreError::fatal)?,
            device: device.try_into().map_err(StoreError::fatal)?,
            keypackage_ref: keypackage_ref.into(),
            keypackage: Base64Bytes(bytes),
            ciphersuite: suite(ciphersuite)?,
            not_after: timestamp(not_after)?,
            expires_at: request.until,
            last_resort: false,
            handout: Some(0),
            receipt: None,
        });
    }
    Ok(served.into_iter().map(|(number, answer)| (number, in_order(answer))).collect())
}
