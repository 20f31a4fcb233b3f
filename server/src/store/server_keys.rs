//! Random keys that all servers of a database share. They never leave the servers.

use diesel::prelude::*;
use rand::{TryRng, rngs::SysRng};

use super::database::{Store, StoreError, schema::server_keys, sql::statements};

/// The purpose of a key.
#[derive(Clone, Copy, Debug)]
pub enum ServerKey {
    /// The digests by which owners see the groups of reservations.
    GroupIds,
    /// The tokens of registrations that can be repeated.
    Registrations,
    /// The signature keys of examples.
    Examples,
}

impl ServerKey {
    /// Its name in the database.
    fn name(self) -> &'static str {
        match self {
            Self::GroupIds => "group-ids",
            Self::Registrations => "registrations",
            Self::Examples => "examples",
        }
    }
}

statements! {
    fn kept_key(conn, name: &str) -> QueryResult<Option<Vec<u8>>> {
        server_keys::table.find(name).select(server_keys::key).first(conn).optional()
    }

    /// If another server has stored a key first, that key stays.
    fn keep_key(conn, name: &str, key: &[u8]) -> QueryResult<usize> {
        diesel::insert_into(server_keys::table)
            .values((server_keys::name.eq(name), server_keys::key.eq(key)))
            .on_conflict_do_nothing()
            .execute(conn)
    }
}

impl Store {
    /// Returns the key for this purpose, and creates it if there is none.
    ///
    /// # Errors
    /// When the database fails, or the operating system gives no random bytes.
    pub(crate) fn server_key(&self, purpose: ServerKey) -> Result<Vec<u8>, StoreError> {
        let name = purpose.name();
        if let Some(key) = self.read(|conn| kept_key(conn, name))? {
            return Ok(key);
        }
        let mut new = [0; 32];
        SysRng.try_fill_bytes(&mut new).map_err(StoreError::fatal)?;
        self.write("server_key", |conn| keep_key(conn, name, &new).map_err(StoreError::from))?;
        let key = self.read(|conn| kept_key(conn, name))?;
        key.ok_or_else(|| StoreError::fatal(anyhow::anyhow!("the key {name} was deleted just now")))
    }
}
