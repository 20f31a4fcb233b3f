//! A spend and its result.

use diesel::prelude::*;
use jiff::Timestamp;
use keypool_openapi::{KeyPackageRef, Proof, ReservationId, State};
use keypool_transparency::package::PackageId;

use crate::store::{
    steps::{self, Leaves},
    tokens::ShownToken,
};

/// A request to spend a reservation whose KeyPackage is in a Commit.
#[derive(Clone, Debug)]
pub struct Spend {
    /// The reservation.
    pub reservation: ReservationId,
    /// The holder's token.
    pub by: ShownToken,
    /// The group of the Commit.
    pub group_id: Vec<u8>,
    /// The random bytes that the holder sent with its reserve, if it sends them again.
    pub bind: Option<[u8; 32]>,
    /// What the holder wants that binds the server. The store does not read it.
    pub proof: Proof,
}

/// The result of a spend.
#[derive(Clone, Debug)]
pub struct Spent {
    /// The KeyPackage.
    pub keypackage_ref: KeyPackageRef,
    /// The state after the spend: `Spent`, or `Available` for a last resort.
    pub state: State,
    /// The time of the first spend.
    pub spent_at: Timestamp,
    /// The number of the hand-out in the log; `None` for a last resort.
    pub handout: Option<u32>,
    /// What the log gets of it; `None` if it was spent before.
    pub logged: Option<SpendStep>,
}

/// What the log gets of a spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpendStep {
    /// The package's name in the log, if it has one.
    pub package: Option<PackageId>,
    /// Whether the hand-out begins with it, too: the reservation had ended before.
    pub is_late: bool,
}

/// A KeyPackage that was spent.
#[derive(Queryable)]
pub(in crate::store) struct Used {
    pub keypackage_ref: Vec<u8>,
    pub package_id: Option<Vec<u8>>,
    pub step: i32,
    pub opened: Option<i64>,
}

impl Used {
    /// The answer to the first spend.
    pub fn spent(self, now: Timestamp) -> Spent {
        let logged = SpendStep {
            package: self.package_id.and_then(|id| id.try_into().ok()).map(PackageId),
            is_late: matches!(steps::leaves(self.step), Leaves::Both(_)),
        };
        Spent {
            keypackage_ref: self.keypackage_ref.into(),
            state: State::Spent,
            spent_at: now,
            handout: steps::handout(self.step, false),
            logged: Some(logged),
        }
    }
}

/// SQL condition: the holder can spend the KeyPackage. A late spend still works if no other device has reserved the
/// KeyPackage since, even if it has lapsed, expired or been retired.
pub(crate) const SPENDABLE: &str = "state IN ('reserved', 'available', 'expired', 'retired')";
