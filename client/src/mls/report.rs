//! What a refresh tells.

use std::fmt;

use keypool_openapi::{KeyPackageRef, PoolStatus, RejectionReason, UserName};
use serde::Serialize;

/// A KeyPackage that the server refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejection {
    /// Which.
    pub keypackage_ref: KeyPackageRef,
    /// Why: stable, and what a program decides by.
    pub reason: RejectionReason,
    /// Why, in words.
    pub detail: String,
}

/// Something that the pool's owner should know of. Displays as a sentence that says what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Warning {
    /// This machine's clock and the server's differ.
    ClockSkew {
        /// By how many seconds this machine's clock is ahead; negative if it is behind.
        seconds: i64,
    },
    /// The pool on the server had KeyPackages that were not generated here; they are withdrawn.
    ForeignKeyPackages {
        /// How many.
        count: usize,
    },
    /// The server's database was restored from a backup. What had been uploaded is given up, for it may have been handed
    /// out since the backup, and its keys stay for Welcomes that are under way.
    ServerRestored {
        /// How many were given up.
        given_up: usize,
    },
    /// A user takes a lot of this device's KeyPackages.
    Draining {
        /// Who.
        user: UserName,
        /// How many within the last hour.
        handed_out: u64,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClockSkew { seconds } => write!(
                f,
                "this machine's clock is {} s {} the server's; set it right, or others will refuse what this device signs",
                seconds.unsigned_abs(),
                if *seconds > 0 { "ahead of" } else { "behind" }
            ),
            Self::ForeignKeyPackages { count } => write!(
                f,
                "{count} KeyPackages on the server were not generated here, and are withdrawn: either this data \
                 directory was restored from a backup, or another client works on a copy of it; stop that one"
            ),
            Self::ServerRestored { given_up } => write!(
                f,
                "the server was restored from a backup: {given_up} KeyPackages that somebody may have by now are given up \
                 and made anew; messages that were sent since the backup and did not arrive are lost"
            ),
            Self::Draining { user, handed_out } => write!(
                f,
                "{user} was handed out {handed_out} of this device's KeyPackages within an hour; if that is no friend, \
                 tell the server's operator"
            ),
        }
    }
}

/// What a refresh did.
#[derive(Clone, Debug, Serialize)]
pub struct RefreshReport {
    /// KeyPackages that were removed here, with their keys: they ended a day ago, or were refused.
    pub removed: usize,
    /// KeyPackages that were generated, last resorts included.
    pub generated: usize,
    /// KeyPackages that the server confirmed, last resorts included.
    pub uploaded: usize,
    /// KeyPackages of which the server knew something that was not known here.
    pub reconciled: usize,
    /// KeyPackages that were withdrawn from the server.
    pub revoked: usize,
    /// KeyPackages that the server refused.
    pub rejected: Vec<Rejection>,
    /// What the owner should know of.
    pub warnings: Vec<Warning>,
    /// The pool on the server after the refresh.
    pub pool: PoolStatus,
}

impl RefreshReport {
    /// A report of a refresh that has done nothing yet.
    pub(crate) fn new(pool: PoolStatus) -> Self {
        let warnings = pool
            .draining
            .iter()
            .map(|drain| Warning::Draining { user: drain.user.clone(), handed_out: drain.handed_out })
            .collect();
        Self { removed: 0, generated: 0, uploaded: 0, reconciled: 0, revoked: 0, rejected: Vec::new(), warnings, pool }
    }

    /// Whether everything was in order already.
    #[must_use]
    pub fn changed_nothing(&self) -> bool {
        self.removed + self.generated + self.uploaded + self.reconciled + self.revoked + self.rejected.len() == 0
    }
}
