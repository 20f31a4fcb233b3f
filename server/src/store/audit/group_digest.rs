//! Keyed digests of group ids. The owner of a KeyPackage must not learn the group's id before it is added: with the id,
//! anybody could claim the group's first epoch.

use hmac::{Hmac, KeyInit, Mac};
use keypool_openapi::UserName;
use sha2::Sha256;

use crate::store::{
    database::{Store, StoreError},
    server_keys::ServerKey,
};

/// The key of the digests, shared by all servers of the database.
pub(crate) struct DigestKey(Vec<u8>);

impl DigestKey {
    /// HMAC-SHA-256 over the owner's name and the group id. Two owners see different digests of the same group.
    pub(crate) fn digest(&self, owner: &UserName, group_id: &[u8]) -> Result<Vec<u8>, StoreError> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).map_err(StoreError::fatal)?;
        mac.update(owner.as_str().as_bytes());
        // No user name contains a zero byte, so a different name and id never give the same input.
        mac.update(&[0]);
        mac.update(group_id);
        Ok(mac.finalize().into_bytes().to_vec())
    }
}

impl Store {
    /// Returns the key of the digests.
    pub(crate) fn digest_key(&self) -> Result<DigestKey, StoreError> {
        self.server_key(ServerKey::GroupIds).map(DigestKey)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_of_one_key_one_owner_and_one_group() {
        let (alice, bob) = ("alice".parse().unwrap(), "bob".parse().unwrap());
        let (key, other) = (DigestKey(vec![1; 32]), DigestKey(vec![2; 32]));
        let digest = key.digest(&alice, b"friends").unwrap();
        assert_eq!(digest.len(), 32);
        assert_eq!(key.digest(&alice, b"friends").unwrap(), digest);
        for another in [
            other.digest(&alice, b"friends"),
            key.digest(&bob, b"friends"),
            key.digest(&alice, b"others"),
            key.digest(&alice, b""),
        ] {
            assert_ne!(another.unwrap(), digest);
        }
    }
}
