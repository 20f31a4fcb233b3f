//! The status of a KeyPackage of this device.

use strum::{Display, EnumIter, EnumString, IntoStaticStr};

/// The status of one of this device's KeyPackages, as far as this device knows.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Display,
    EnumIter,
    EnumString,
    IntoStaticStr,
    serde::Serialize,
)]
#[strum(serialize_all = "lowercase")]
#[serde(rename_all = "lowercase")]
pub enum KeyPackageStatus {
    /// Generated; the server has not confirmed it.
    Created,
    /// The server has confirmed it.
    Uploaded,
    /// The server's inventory shows that it can be reserved.
    Available,
    /// The server says that it is reserved.
    Reserved,
    /// The server says that it is spent; a Welcome for it may still arrive.
    Spent,
    /// Past its `not_after`; kept for a day, because a Welcome for it may still arrive.
    Expired,
    /// The server refused or revoked it. The next refresh deletes it, or, if an adder may have it, one a day later.
    Failed,
}

impl KeyPackageStatus {
    /// Whether a KeyPackage of this status may change to the status `next`.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use KeyPackageStatus::{Available, Created, Expired, Failed, Reserved, Spent, Uploaded};
        match self {
            Created => matches!(next, Uploaded | Expired | Failed),
            // Back to `Created`: the server has lost it, and it is uploaded again.
            Uploaded => matches!(next, Created | Available | Reserved | Spent | Expired | Failed),
            Available => matches!(next, Created | Reserved | Spent | Expired | Failed),
            Reserved => matches!(next, Available | Spent | Expired | Failed),
            // It was spent before its end, and this device learns of it later.
            Expired | Failed => matches!(next, Spent),
            Spent => false,
        }
    }

    /// Whether the server can hand it out, now or after its reservation lapses.
    #[must_use]
    pub fn is_live(self) -> bool {
        matches!(self, Self::Created | Self::Uploaded | Self::Available | Self::Reserved)
    }
}
