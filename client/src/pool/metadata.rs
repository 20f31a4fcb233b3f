//! The metadata of a KeyPackage: one row each. Its keys are in OpenMLS's storage.

use jiff::Timestamp;
use keypool_openapi::{Base64Bytes, DeviceOf, KeyPackageRef, ReservationId};

use crate::key_package_status::KeyPackageStatus;

/// The last reservation of a KeyPackage, as the server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservationInfo {
    /// The reservation.
    pub reservation_id: Option<ReservationId>,
    /// The device that reserved it.
    pub reserved_by: Option<DeviceOf>,
    /// The end of its TTL.
    pub expires_at: Option<Timestamp>,
}

/// The spend of a KeyPackage, as the server says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spending {
    /// The device that spent it.
    pub by: Option<DeviceOf>,
    /// The group that it was spent for.
    pub group_id: Option<Base64Bytes>,
    /// The time of the spend; `None` means now.
    pub at: Option<Timestamp>,
}

/// The metadata of a KeyPackage. It contains no key material.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPackageMetadata {
    /// Its ref.
    pub keypackage_ref: KeyPackageRef,
    /// Its status.
    pub status: KeyPackageStatus,
    /// The time of its generation.
    pub created_at: Timestamp,
    /// The time at which the server confirmed it.
    pub uploaded_at: Option<Timestamp>,
    /// The time at which this device learnt of its first reservation.
    pub reserved_at: Option<Timestamp>,
    /// The time of its spend.
    pub spent_at: Option<Timestamp>,
    /// The end of its lifetime.
    pub not_after: Timestamp,
    /// Its last reservation.
    pub reservation_id: Option<ReservationId>,
    /// The end of the TTL of its last reservation.
    pub reservation_expires_at: Option<Timestamp>,
    /// The device that reserved it last, `user/device`.
    pub reserved_by: Option<String>,
    /// The group that it was spent for.
    pub spent_group_id: Option<Vec<u8>>,
    /// The device that spent it, `user/device`.
    pub spent_by: Option<String>,
    /// Its ciphersuite (RFC 9420, section 17.1).
    pub ciphersuite: u16,
    /// Whether it is a last resort.
    pub last_resort: bool,
    /// For a failed one, the time until which its keys are kept; `None` if no adder can have it.
    pub keep_until: Option<Timestamp>,
    /// Whether its signature key was rotated away, so that it has to be revoked on the server.
    pub superseded: bool,
}

impl KeyPackageMetadata {
    /// The row of a newly generated KeyPackage.
    #[must_use]
    pub fn created(
        keypackage_ref: KeyPackageRef,
        (created_at, not_after): (Timestamp, Timestamp),
        ciphersuite: u16,
        last_resort: bool,
    ) -> Self {
        Self {
            keypackage_ref,
            status: KeyPackageStatus::Created,
            created_at,
            uploaded_at: None,
            reserved_at: None,
            spent_at: None,
            not_after,
            reservation_id: None,
            reservation_expires_at: None,
            reserved_by: None,
            spent_group_id: None,
            spent_by: None,
            ciphersuite,
            last_resort,
            keep_until: None,
            superseded: false,
        }
    }

    /// Whether the server can hand it out for the first time.
    #[must_use]
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        self.is_available(now) && self.reserved_at.is_none()
    }

    /// Whether the server can hand it out now, or could after its upload.
    #[must_use]
    pub fn is_available(&self, now: Timestamp) -> bool {
        self.is_live(now) && self.status != KeyPackageStatus::Reserved
    }

    /// Whether the server can hand it out, now or after its reservation lapses.
    #[must_use]
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.status.is_live() && self.not_after > now
    }
}
