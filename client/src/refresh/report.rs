//! The report of a refresh.

use std::fmt;

use keypool_openapi::{KeyPackageRef, LogHead, PoolStatus, RejectionReason, UserName};
use serde::Serialize;
use utoipa::ToSchema;

use crate::log_report::LogReport;

/// A KeyPackage that the server refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Rejection {
    /// Its ref.
    pub keypackage_ref: KeyPackageRef,
    /// The reason, stable for programs.
    pub reason: RejectionReason,
    /// The reason in words.
    pub detail: String,
}

/// A warning for the owner of the pool. Its `Display` says what is wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Warning {
    /// This machine's clock and the server's differ.
    ClockSkew {
        /// The seconds that this machine's clock is ahead; negative if it is behind.
        seconds: i64,
    },
    /// The pool on the server had KeyPackages that this device did not generate; they were revoked.
    ForeignKeyPackages {
        /// Their number.
        count: usize,
    },
    /// The server's database was restored from a backup. The uploaded KeyPackages are given up, because they may have
    /// been handed out since the backup. Their keys stay for Welcomes that may still arrive.
    ServerRestored {
        /// The number of KeyPackages that were given up.
        given_up: usize,
    },
    /// One user reserves many of this device's KeyPackages.
    Draining {
        /// The user.
        user: UserName,
        /// The number of KeyPackages handed out to the user within the last hour.
        handed_out: u64,
    },
    /// The server was restored from a backup, and its transparency log has lost leaves.
    LogLost {
        /// The number of leaves that this device has seen, and that are gone.
        leaves: u64,
    },
    /// The server had a transparency log, and shows none any more.
    LogMissing,
    /// A Welcome came from a device to which the log shows no hand-out of that KeyPackage. The server, or an adder before it, may
    /// have used bytes that it saw: nobody is accused.
    UnexpectedWelcome {
        /// The sender, `user/device`.
        from: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClockSkew { seconds } => write!(
                f,
                "this machine's clock is {} s {} the server's: set it, or other devices will refuse this device's signatures",
                seconds.unsigned_abs(),
                if *seconds > 0 { "ahead of" } else { "behind" }
            ),
            Self::ForeignKeyPackages { count } => write!(
                f,
                "{count} KeyPackages on the server were not generated here and are now revoked. Either this data \
                 directory was restored from a backup, or another client uses a copy of it: stop that client"
            ),
            Self::ServerRestored { given_up } => write!(
                f,
                "the server was restored from a backup: {given_up} KeyPackages that it may have handed out since are given \
                 up and replaced; messages that were sent since the backup and not received are lost"
            ),
            Self::Draining { user, handed_out } => write!(
                f,
                "{user} reserved {handed_out} of this device's KeyPackages within an hour: if you do not expect that, tell \
                 the server's operator"
            ),
            Self::LogLost { leaves } => write!(
                f,
                "the server was restored from a backup: its log has lost {leaves} leaves, with which it could have proven \
                 hand-outs"
            ),
            Self::LogMissing => f.write_str(
                "the server has stopped its transparency log: it cannot prove any more that it hands out nothing twice; ask \
                 its operator",
            ),
            Self::UnexpectedWelcome { from } => write!(
                f,
                "an invitation by {from} used a KeyPackage that was not handed out to that device: ask {from}, and tell the \
                 server's operator"
            ),
        }
    }
}

/// The result of a refresh.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct RefreshReport {
    /// KeyPackages deleted here, with their keys: they ended a day ago, or were refused.
    pub removed: usize,
    /// Generated KeyPackages, including last resorts.
    pub generated: usize,
    /// KeyPackages that the server accepted, including last resorts.
    pub uploaded: usize,
    /// KeyPackages whose local state was updated from the server.
    pub reconciled: usize,
    /// KeyPackages revoked on the server.
    pub revoked: usize,
    /// KeyPackages that the server refused, with reasons.
    pub rejected: Vec<Rejection>,
    /// Warnings for the owner.
    pub warnings: Vec<Warning>,
    /// The pool on the server after the refresh.
    pub pool: PoolStatus,
    /// What was compared with the server's transparency log; `null` if it has none.
    pub log: Option<LogReport>,
    /// What the server showed of its transparency log, for who checks it.
    #[serde(skip)]
    pub log_head: Option<LogHead>,
}

impl RefreshReport {
    /// A report of a refresh that has done nothing yet.
    #[must_use]
    pub fn new(mut pool: PoolStatus) -> Self {
        let log_head = pool.log.take();
        let warnings = pool
            .draining
            .iter()
            .map(|drain| Warning::Draining { user: drain.user.clone(), handed_out: drain.handed_out })
            .collect();
        Self {
            removed: 0,
            generated: 0,
            uploaded: 0,
            reconciled: 0,
            revoked: 0,
            rejected: Vec::new(),
            warnings,
            pool,
            log: None,
            log_head,
        }
    }

    /// Whether the refresh had nothing to do.
    #[must_use]
    pub fn changed_nothing(&self) -> bool {
        self.removed + self.generated + self.uploaded + self.reconciled + self.revoked + self.rejected.len() == 0
    }
}
