//! Names the KeyPackages in the log that a server of the version before has taken.

use diesel::prelude::*;
use keypool_transparency::{key_package::KeyPackageFields, package::PackageId};

use crate::store::database::{Conn, Store, StoreError, schema::key_packages, sql::statements};

/// The most KeyPackages in one transaction.
const AT_ONCE: i64 = 500;

/// What those get that cannot be read: no name, and no second look.
const NONE: &[u8] = &[];

statements! {
    fn name(conn, keypackage_ref: &[u8], package_id: &[u8]) -> QueryResult<usize> {
        let unnamed = key_packages::package_id.is_null();
        diesel::update(key_packages::table.find(keypackage_ref).filter(unnamed))
            .set(key_packages::package_id.eq(package_id))
            .execute(conn)
    }
}

fn some(conn: &mut Conn<'_>) -> QueryResult<Vec<(Vec<u8>, Vec<u8>)>> {
    let unnamed = key_packages::table
        .filter(key_packages::package_id.is_null().and(key_packages::live))
        .order(key_packages::device_id.asc())
        .limit(AT_ONCE)
        .select((key_packages::keypackage_ref, key_packages::key_package));
    match conn {
        Conn::Postgres(conn) => unnamed.for_update().skip_locked().load(*conn),
        Conn::Sqlite(conn) => unnamed.load(*conn),
    }
}

fn name_some(conn: &mut Conn<'_>) -> Result<usize, StoreError> {
    let unnamed = some(conn)?;
    for (keypackage_ref, bytes) in &unnamed {
        match KeyPackageFields::parse(bytes) {
            Ok(fields) => name(conn, keypackage_ref, &PackageId::of(&fields).0)?,
            Err(error) => {
                let hex = hex::encode(keypackage_ref);
                tracing::warn!(keypackage_ref = hex, %error, "a stored KeyPackage cannot be read: it gets no leaves");
                name(conn, keypackage_ref, NONE)?
            }
        };
    }
    Ok(unnamed.len())
}

pub(super) fn name_all(store: &Store) -> Result<usize, StoreError> {
    let mut named = 0;
    loop {
        match store.write("name_packages", name_some)? {
            0 => return Ok(named),
            some => named += some,
        }
    }
}
