//! The pool's rows in SQLite.

use jiff::Timestamp;
use keypool_openapi::KeyPackageRef;
use rusqlite::{OptionalExtension as _, Row, Statement, params};

use super::{column::Sql, provider::Provider, store::LocalStore};
use crate::{
    error::{Error, Result},
    pool::{KeyPackageMetadata, PoolHistory, PoolStore},
};

/// Lists each column of the table once, with the field that it holds, for the functions that write and read rows. The first one is the key.
macro_rules! columns {
    ($($field:ident: $column:literal),+ $(,)?) => {
        const COLUMNS: &[&str] = &[$($column),+];

        fn write(statement: &mut Statement<'_>, row: &KeyPackageMetadata) -> rusqlite::Result<usize> {
            statement.execute(params![$(Sql(&row.$field)),+])
        }

        fn read(row: &Row<'_>) -> rusqlite::Result<KeyPackageMetadata> {
            Ok(KeyPackageMetadata { $($field: row.get::<_, Sql<_>>($column)?.0),+ })
        }
    };
}

columns! {
    keypackage_ref: "ref",
    status: "status",
    created_at: "created_at",
    uploaded_at: "uploaded_at",
    reserved_at: "reserved_at",
    spent_at: "spent_at",
    not_after: "not_after",
    reservation_id: "reservation_id",
    reservation_expires_at: "reservation_expires_at",
    reserved_by: "reserved_by",
    spent_group_id: "spent_group_id",
    spent_by: "spent_by",
    ciphersuite: "ciphersuite",
    last_resort: "last_resort",
    keep_until: "keep_until",
    superseded: "superseded",
}

/// The columns with their parameters, as in `ref = ?1, status = ?2`, or only their names or parameters.
fn list(column: impl Fn(usize, &str) -> String) -> String {
    let columns: Vec<_> = COLUMNS.iter().enumerate().map(|(index, name)| column(index + 1, name)).collect();
    columns.join(", ")
}

impl PoolStore for LocalStore {
    type Error = rusqlite::Error;
    type Provider<'a> = Box<Provider<'a>>;

    fn provider(&self) -> Box<Provider<'_>> {
        Box::new(Self::provider(self))
    }

    fn transaction<T>(&self, write: impl FnOnce() -> Result<T>) -> Result<T> {
        Self::transaction(self, write)
    }

    fn metadata(&self) -> Result<Vec<KeyPackageMetadata>> {
        self.connection()
            .prepare_cached(&format!("SELECT {} FROM keypackage_pool_metadata", COLUMNS.join(", ")))
            .and_then(|mut select| select.query_map([], read)?.collect())
            .map_err(Error::storage("read the KeyPackages' metadata"))
    }

    fn find_metadata(&self, keypackage_ref: &KeyPackageRef) -> Result<Option<KeyPackageMetadata>> {
        self.connection()
            .prepare_cached(&format!("SELECT {} FROM keypackage_pool_metadata WHERE ref = ?1", COLUMNS.join(", ")))
            .and_then(|mut select| select.query_row([Sql(keypackage_ref)], read).optional())
            .map_err(Error::storage("read a KeyPackage's metadata"))
    }

    fn create_pool_metadata(&self, row: &KeyPackageMetadata) -> Result<()> {
        let (names, values) = (COLUMNS.join(", "), list(|number, _| format!("?{number}")));
        self.connection()
            .prepare_cached(&format!("INSERT INTO keypackage_pool_metadata ({names}) VALUES ({values})"))
            .and_then(|mut insert| write(&mut insert, row))
            .map_err(Error::storage("write a KeyPackage's metadata"))?;
        Ok(())
    }

    fn update_pool_metadata(&self, row: &KeyPackageMetadata) -> Result<()> {
        let set = list(|number, name| format!("{name} = ?{number}"));
        self.connection()
            .prepare_cached(&format!("UPDATE keypackage_pool_metadata SET {set} WHERE ref = ?1"))
            .and_then(|mut update| write(&mut update, row))
            .map_err(Error::storage("change a KeyPackage's metadata"))?;
        Ok(())
    }

    fn delete_pool_metadata(&self, keypackage_ref: &KeyPackageRef) -> Result<()> {
        self.connection()
            .prepare_cached("DELETE FROM keypackage_pool_metadata WHERE ref = ?1")
            .and_then(|mut delete| delete.execute([Sql(keypackage_ref)]))
            .map_err(Error::storage("delete a KeyPackage's metadata"))?;
        Ok(())
    }

    fn history(&self) -> Result<PoolHistory> {
        let times = "SELECT (SELECT fenced_at FROM device_identity), (SELECT max(seen_at) FROM foreign_key_packages)";
        let time = |row: &Row<'_>, index| Ok::<_, rusqlite::Error>(row.get::<_, Sql<Option<Timestamp>>>(index)?.0);
        self.connection()
            .query_row(times, [], |row| Ok(PoolHistory { fenced_at: time(row, 0)?, foreign_at: time(row, 1)? }))
            .map_err(Error::storage("read the history of the pool"))
    }

    fn set_history(&self, history: &PoolHistory) -> Result<()> {
        let connection = self.connection();
        connection
            .execute("UPDATE device_identity SET fenced_at = ?1", [Sql(&history.fenced_at)])
            .and_then(|_| connection.execute("DELETE FROM foreign_key_packages", []))
            .and_then(|_| match history.foreign_at {
                Some(at) => connection.execute("INSERT INTO foreign_key_packages (seen_at) VALUES (?1)", [Sql(&at)]),
                None => Ok(0),
            })
            .map_err(Error::storage("write the history of the pool"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
