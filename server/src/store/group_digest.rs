//! Digests of group ids: who is about to be added to a group must not know its id yet, with which anybody could take its first
//! epoch.

use diesel::prelude::*;
use hmac::{Hmac, KeyInit, Mac};
use keypool_openapi::UserName;
use rand::{TryRng, rngs::SysRng};
use sha2::Sha256;

use super::{Store, StoreError, connection::with_conn, rows::statements, schema::server_keys};

/// The key's name in the database.
const NAME: &str = "group-ids";

/// The key of the digests, the same on all servers.
pub(super) struct DigestKey(Vec<u8>);

impl DigestKey {
    /// HMAC-SHA-256 over the owner's name and the id. Two owners see different digests of the same group.
    pub(super) fn digest(&self, owner: &UserName, group_id: &[u8]) -> Result<Vec<u8>, StoreError> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).map_err(StoreError::fatal)?;
        mac.update(owner.as_str().as_bytes());
        // No name has it: so no other name and id are the same bytes.
        mac.update(&[0]);
        mac.update(group_id);
        Ok(mac.finalize().into_bytes().to_vec())
    }
}

statements! {
    trait KeySql {
        fn kept_key(conn, name: &str) -> QueryResult<Option<Vec<u8>>> {
            server_keys::table.find(name).select(server_keys::key).first(conn).optional()
        }

        /// Where another server was faster, its key stays.
        fn keep_key(conn, name: &str, key: &[u8]) -> QueryResult<usize> {
            diesel::insert_into(server_keys::table)
                .values((server_keys::name.eq(name), server_keys::key.eq(key)))
                .on_conflict_do_nothing()
                .execute(conn)
        }
    }
}

impl Store {
    /// The key, which is made where there is none.
    pub(super) fn digest_key(&self) -> Result<DigestKey, StoreError> {
        if let Some(key) = with_conn!(self, read, |conn| conn.kept_key(NAME))? {
            return Ok(DigestKey(key));
        }
        let mut new = [0; 32];
        SysRng.try_fill_bytes(&mut new).map_err(StoreError::fatal)?;
        with_conn!(self, write "digest_key", |conn| conn.keep_key(NAME, &new).map_err(StoreError::from))?;
        let key = with_conn!(self, read, |conn| conn.kept_key(NAME))?;
        key.map(DigestKey).ok_or_else(|| StoreError::fatal(anyhow::anyhow!("the key {NAME} was deleted just now")))
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
