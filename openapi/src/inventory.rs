use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::{IntoParams, ToSchema};

use crate::{Base64Bytes, DeviceOf, KeyPackageRef, ReservationId, State};

/// Which page of the inventory to read.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct InventoryQuery {
    /// The page begins after this ref: `next` of the previous page.
    #[param(nullable = false)]
    pub after: Option<KeyPackageRef>,
    /// The most KeyPackages to answer.
    #[param(nullable = false, minimum = 1, maximum = 1000, default = 500)]
    pub limit: Option<u32>,
}

/// A page of the caller's own pool.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InventoryPage {
    /// The KeyPackages, sorted by their refs.
    pub keypackages: Vec<InventoryItem>,
    /// Where the next page begins; `null` on the last page.
    pub next: Option<KeyPackageRef>,
}

/// A KeyPackage that the server knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InventoryItem {
    /// The KeyPackage's ref.
    pub keypackage_ref: KeyPackageRef,
    /// Its state.
    pub state: State,
    /// Its ciphersuite (RFC 9420, section 17.1).
    #[schema(example = 1)]
    pub ciphersuite: u16,
    /// When it expires.
    #[schema(value_type = String, format = DateTime)]
    pub not_after: Timestamp,
    /// Whether it is a last resort.
    pub last_resort: bool,
    /// Its latest reservation.
    #[schema(value_type = Option<String>)]
    pub reservation_id: Option<ReservationId>,
    /// The adder of its latest reservation.
    pub reserved_by: Option<DeviceOf>,
    /// When that reservation ends or ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub reserved_until: Option<Timestamp>,
    /// When it was spent.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub spent_at: Option<Timestamp>,
    /// The group for which it was spent.
    #[serde(default, deserialize_with = "crate::ids::bounded_group_id")]
    pub group_id: Option<Base64Bytes>,
}

/// The digest by which a client compares its own records with the server's inventory: SHA-256 over the sorted refs of all
/// KeyPackages that are available or reserved, the last resort included; in lower-case hex.
#[must_use]
pub fn inventory_digest<'r>(refs: impl IntoIterator<Item = &'r KeyPackageRef>) -> String {
    let mut refs: Vec<_> = refs.into_iter().collect();
    refs.sort_unstable();
    let hash = refs.into_iter().fold(Sha256::new(), |hash, one| hash.chain_update(one.as_bytes()));
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_of_the_sorted_refs() {
        let (low, high) = (KeyPackageRef::from(vec![1; 32]), KeyPackageRef::from(vec![2; 32]));
        let expected = hex::encode(Sha256::digest([[1; 32], [2; 32]].concat()));
        assert_eq!(inventory_digest([&high, &low]), expected);
        assert_eq!(inventory_digest([&low, &high]), expected);
        // SHA-256 of nothing (FIPS 180-4).
        assert_eq!(inventory_digest([]), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
