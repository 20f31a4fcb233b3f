use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use strum::{Display, EnumIter, EnumString, IntoStaticStr};
use utoipa::{IntoParams, ToSchema};

use crate::{DeviceName, LogHead, UserName, signed_parameter};

/// The health of a pool.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    Display,
    EnumIter,
    EnumString,
    IntoStaticStr,
    ToSchema,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum Health {
    /// Adders can reserve at most a last resort.
    Empty,
    /// There are fewer fresh KeyPackages than the low watermark.
    Low,
    /// There are enough fresh KeyPackages.
    Good,
}

/// A device's pool. The counts leave the last resort out, and
/// `available + reserved + spent + revoked + expired = total`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PoolStatus {
    /// The user.
    #[schema(example = "alice")]
    pub user: UserName,
    /// The device.
    #[schema(example = "laptop")]
    pub device: DeviceName,
    /// The server's time of this status. A client compares its own clock with it.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// For how many seconds a KeyPackage must still be valid to be handed out. One that expires sooner counts as
    /// expired, unless an adder holds it.
    #[serde(default)]
    #[schema(example = 3_600)]
    pub min_remaining: u64,
    /// KeyPackages that adders can reserve: `fresh + lapsed`.
    pub available: u64,
    /// Available KeyPackages that were never handed out.
    pub fresh: u64,
    /// KeyPackages that are available again after a reservation lapsed or was released.
    pub lapsed: u64,
    /// KeyPackages that adders hold now.
    pub reserved: u64,
    /// KeyPackages that were used in a Commit.
    pub spent: u64,
    /// KeyPackages past their `not_after`, or too near to it to be handed out.
    pub expired: u64,
    /// KeyPackages that are revoked or retired.
    pub revoked: u64,
    /// All KeyPackages that the server still knows.
    pub total: u64,
    /// Available KeyPackages that are handed out for at most two more days.
    pub expiring_soon: u64,
    /// When the device last uploaded a KeyPackage that was accepted.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_upload: Option<Timestamp>,
    /// When the server withdrew every KeyPackage but last resorts, because its database was restored from a backup. If
    /// this time has changed, the client must not upload again the KeyPackages that it had uploaded before: they may have
    /// been handed out.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub fenced_at: Option<Timestamp>,
    /// The last resort, over all ciphersuites.
    pub last_resort: LastResortStatus,
    /// The worst health of the ciphersuites.
    pub health: Health,
    /// How many fresh KeyPackages fill the pool.
    #[schema(example = 24)]
    pub recommended_upload: u64,
    /// SHA-256 over the sorted refs of all KeyPackages that are available or reserved, the last resort included. If the
    /// client computes the same digest from its own records, they match the server's inventory.
    pub inventory_digest: String,
    /// Users who reserved at least half a pool within the last hour, and may drain it. Sorted by their number of
    /// reservations, highest first.
    pub draining: Vec<Drain>,
    /// The same counts for each ciphersuite of the pool.
    pub ciphersuites: Vec<SuiteStatus>,
    /// At `GET /keypackages/status`, if the server has a transparency log: its newest checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub log: Option<LogHead>,
}

/// The newest checkpoint that a caller has. The answer shows how the server's newest one continues it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StatusQuery {
    /// The name of its log. Requires `log_size`.
    #[param(
        nullable = false,
        pattern = "^keypool/[0-9a-f]{16}/[1-9][0-9]{0,8}-[0-9a-f]{8}$",
        example = "keypool/0123456789abcdef/1-89abcdef"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_origin: Option<String>,
    /// Its size. Requires `log_origin`.
    #[param(nullable = false, example = 33)]
    #[serde(deserialize_with = "signed_parameter", skip_serializing_if = "Option::is_none")]
    pub log_size: Option<u64>,
}

/// A user who reserved a large part of one pool within the last hour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Drain {
    /// The adders' user.
    #[schema(example = "mallory")]
    pub user: UserName,
    /// How many KeyPackages of the pool the user reserved.
    #[schema(example = 30)]
    pub handed_out: u64,
}

/// The part of a pool that has one ciphersuite, with the counts of [`PoolStatus`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SuiteStatus {
    /// The ciphersuite (RFC 9420, section 17.1).
    #[schema(example = 1)]
    pub ciphersuite: u16,
    /// KeyPackages that adders can reserve: `fresh + lapsed`.
    pub available: u64,
    /// Available KeyPackages that were never handed out.
    pub fresh: u64,
    /// KeyPackages that are available again after a reservation lapsed or was released.
    pub lapsed: u64,
    /// KeyPackages that adders hold now.
    pub reserved: u64,
    /// KeyPackages that were used in a Commit.
    pub spent: u64,
    /// KeyPackages past their `not_after`, or too near to it to be handed out.
    pub expired: u64,
    /// KeyPackages that are revoked or retired.
    pub revoked: u64,
    /// All KeyPackages that the server still knows.
    pub total: u64,
    /// Available KeyPackages that are handed out for at most two more days.
    pub expiring_soon: u64,
    /// The last resort of this ciphersuite.
    pub last_resort: LastResortStatus,
    /// The health of this part.
    pub health: Health,
    /// How many fresh KeyPackages fill this part.
    pub recommended_upload: u64,
}

/// The last resort, which is handed out when nothing else is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastResortStatus {
    /// Whether there is a last resort that can still be handed out.
    pub present: bool,
    /// How often it was handed out. If above 0, upload a new last resort.
    pub uses: u64,
}

/// Which page of the low pools to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LowPoolsQuery {
    /// The page begins after this pool: `next` of the previous page.
    #[param(nullable = false, format = "low-pool", min_length = 1)]
    pub after: Option<String>,
    /// The most pools to answer.
    #[param(nullable = false, minimum = 1, maximum = 1000, default = 100)]
    pub limit: Option<u32>,
}

/// A page of the pools that are low or empty. Devices that have never uploaded a KeyPackage have no pool.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LowPools {
    /// One pool for each device and ciphersuite, the worst first.
    pub pools: Vec<LowPool>,
    /// Where the next page begins; `null` on the last page.
    #[serde(default)]
    pub next: Option<String>,
}

/// A pool that is low or empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LowPool {
    /// The user.
    #[schema(example = "alice")]
    pub user: UserName,
    /// The device.
    #[schema(example = "laptop")]
    pub device: DeviceName,
    /// The ciphersuite; `null` if the server knows no KeyPackage of the device.
    #[schema(example = 1)]
    pub ciphersuite: Option<u16>,
    /// Available KeyPackages that were never handed out, and do not end too soon for it.
    pub fresh: u64,
    /// When the device last uploaded a KeyPackage that was accepted.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_upload: Option<Timestamp>,
}
