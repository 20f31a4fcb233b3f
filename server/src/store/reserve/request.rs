//! A request for KeyPackages, and its answer.

use std::collections::BTreeSet;

use jiff::Timestamp;
use keypool_openapi::{DeviceName, MissingDevice, Proof, ReserveResponse, UserName};
use uuid::Uuid;

use crate::store::{as_of::AsOf, idempotency::IdempotencyKey, tokens::ShownToken};

/// The most reservations that may be held at the same time, counted over all servers of the database.
#[derive(Clone, Copy, Debug)]
pub struct HoldLimits {
    /// Limit for one device as the holder.
    pub total: u32,
    /// Limit for one user's reservations of one other device's KeyPackages.
    pub per_device: u32,
}

/// What KeyPackages have to be like.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Restricts the request to these ciphersuites, the most wanted first; none of them: any.
    pub ciphersuites: Vec<u16>,
    /// Whether a last resort will do.
    pub last_resort: bool,
    /// The KeyPackages have to be valid until then at least.
    pub valid_until: Timestamp,
}

impl Wanted {
    /// The ranges of ciphersuites, the most wanted first.
    pub(super) fn suites(&self) -> Vec<(i32, i32)> {
        if self.ciphersuites.is_empty() {
            return vec![(0, i32::from(u16::MAX))];
        }
        self.ciphersuites.iter().map(|suite| (i32::from(*suite), i32::from(*suite))).collect()
    }

    /// KeyPackages that end before this second are not handed out.
    pub(super) fn usable_until(&self, as_of: AsOf) -> i64 {
        self.valid_until.as_second().max(as_of.usable_until())
    }
}

/// A request for one KeyPackage of each device of the given users.
#[derive(Clone, Debug)]
pub struct Reserve {
    /// The owners' users, each once.
    pub users: BTreeSet<UserName>,
    /// Requested users or devices that policy leaves out. They are part of the answer, also when it is repeated.
    pub refused: Vec<MissingDevice>,
    /// Restricts the request to this device.
    pub device: Option<DeviceName>,
    /// What the KeyPackages have to be like.
    pub wanted: Wanted,
    /// The group that the KeyPackages are for.
    pub group_id: Option<Vec<u8>>,
    /// The random bytes that the adder binds the log's leaf with.
    pub bind: Option<[u8; 32]>,
    /// The adder's token.
    pub by: ShownToken,
    /// The adder's user.
    pub by_user: UserName,
    /// Random. It names the reservations and gives the position in the pool at which the search starts, so that adders
    /// do not collide.
    pub nonce: Uuid,
    /// When the reservations lapse, at a whole second.
    pub until: Timestamp,
    /// The most that the caller may hold at the same time; `None` if there is no limit.
    pub limits: Option<HoldLimits>,
    /// What the caller wants that binds the server. The store does not read it.
    pub proof: Proof,
    /// Set if the request has an `Idempotency-Key`.
    pub repeat: Option<IdempotencyKey>,
}

/// The answer to a request.
#[derive(Clone, Debug)]
pub struct Reserved {
    /// The answer.
    pub answer: ReserveResponse,
    /// Whether it is the kept answer to an earlier request.
    pub is_repeated: bool,
}

impl Reserved {
    /// The answer to a request that was not made before.
    pub(crate) fn first(answer: ReserveResponse) -> Self {
        Self { answer, is_repeated: false }
    }
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReserveError {
    /// The caller's token has been revoked.
    TokenRevoked,
    /// The `Idempotency-Key` was used before, with another request.
    IdempotencyMismatch,
    /// The caller would hold more than its limit. At this time the first of its reservations lapses.
    TooManyHeld(Timestamp),
}

/// Sorts an answer by user and device, so that a repeated answer has the same order.
pub(crate) fn in_order(mut answer: ReserveResponse) -> ReserveResponse {
    answer.reservations.sort_by(|one, other| (&one.user, &one.device).cmp(&(&other.user, &other.device)));
    answer.missing.sort_by(|one, other| (&one.user, &one.device).cmp(&(&other.user, &other.device)));
    answer
}
