//! A spend and its result.

use jiff::Timestamp;
use keypool_openapi::{KeyPackageRef, ReservationId, State};

use crate::store::tokens::ShownToken;

/// A request to spend a reservation whose KeyPackage is in a Commit.
#[derive(Clone, Debug)]
pub struct Spend {
    /// The reservation.
    pub reservation: ReservationId,
    /// The holder's token.
    pub by: ShownToken,
    /// The group of the Commit.
    pub group_id: Vec<u8>,
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
}

/// SQL condition: the holder can spend the KeyPackage. A late spend still works if no other device has reserved the
/// KeyPackage since, even if it has lapsed, expired or been retired.
pub(crate) const SPENDABLE: &str = "state IN ('reserved', 'available', 'expired', 'retired')";
