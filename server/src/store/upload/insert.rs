//! Inserts an upload's KeyPackages, the public keys that may never be used again, and the audit trail.

use diesel::{
    pg::Pg,
    prelude::*,
    sql_types::{Array, BigInt, Binary, Bool, Integer, Nullable},
};
use keypool_openapi::{Action, State};
use keypool_transparency::{key_package::KeyPackageFields, package::PackageId};
use keypool_validation::key_package::ValidatedKeyPackage;

use crate::store::{
    audit::{self, Event},
    database::{
        Conn,
        rows::{NewHpkeKey, NewKeyPackage},
        schema::{hpke_keys, key_packages},
        sql::{push, statement},
    },
    signature_keys::{self, Registration},
};

/// Keys in the database that an upload is compared with.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// HPKE keys that their owners have used before, each with its owner.
    pub hpke: Vec<(i64, Vec<u8>)>,
    /// Current signature keys, by owner and ciphersuite.
    pub signature: Vec<((i64, i32), Vec<u8>)>,
}

/// Lookup of known HPKE keys and of current signature keys, one column for each field.
#[derive(Debug, Default)]
struct KnownKeys<'a> {
    owner: Vec<i64>,
    public_key: Vec<&'a [u8]>,
    device: Vec<i64>,
    registered_at: Vec<i64>,
}

// LIMIT and OFFSET keep the planner from turning the lookups into a join: each key is looked up by its index. An upload
// needs both kinds of keys, so one statement fetches them and saves a round trip.
statement!(KnownKeys, (BigInt, Nullable<Integer>, Binary), Pg, PgConnection => |this, out| {
    push!(out, r"SELECT k.device_id, NULL::integer, k.public_key
FROM unnest({owner}, {public_key}) AS w (owner, public_key)
CROSS JOIN LATERAL (
    SELECT h.device_id, h.public_key FROM hpke_keys h
    WHERE h.device_id = w.owner AND h.public_key = w.public_key LIMIT 1) k
UNION ALL
SELECT s.*
FROM unnest({device}, {registered_at}) AS w (device, registered_at)
CROSS JOIN LATERAL (
    SELECT s.device_id, s.ciphersuite, s.signature_key FROM signature_keys s
    WHERE s.device_id = w.device AND s.registered_at = w.registered_at AND s.until IS NULL OFFSET 0) s",
        owner: Array<BigInt> = &this.owner,
        public_key: Array<Binary> = &this.public_key,
        device: Array<BigInt> = &this.device,
        registered_at: Array<BigInt> = &this.registered_at,
    );
});

/// KeyPackages to insert, one column for each field.
#[derive(Debug, Default)]
struct Put<'a> {
    owner: Vec<i64>,
    keypackage_ref: Vec<&'a [u8]>,
    ciphersuite: Vec<i32>,
    key_package: Vec<&'a [u8]>,
    not_after: Vec<i64>,
    last_resort: Vec<bool>,
    init_key: Vec<&'a [u8]>,
    encryption_key: Vec<&'a [u8]>,
    package_id: Vec<&'a [u8]>,
    now: i64,
}

statement!(Put, Binary, Pg, PgConnection => |this, out| {
    push!(out, r"WITH new AS MATERIALIZED (
    SELECT * FROM unnest({owner}, {keypackage_ref}, {ciphersuite}, {key_package}, {not_after}, {last_resort}, {init_key},
                         {encryption_key}, {package_id})
        AS w (owner, keypackage_ref, ciphersuite, key_package, not_after, last_resort, init_key, encryption_key, package_id)),
stored AS (
    INSERT INTO key_packages (keypackage_ref, device_id, ciphersuite, key_package, not_after, last_resort, state,
        package_id)
    SELECT keypackage_ref, owner, ciphersuite, key_package, not_after, last_resort, 'available', package_id FROM new
    ON CONFLICT DO NOTHING RETURNING keypackage_ref),
known AS (
    INSERT INTO hpke_keys (device_id, public_key, keypackage_ref, not_after)
    SELECT owner, key, keypackage_ref, not_after
    FROM new CROSS JOIN LATERAL (VALUES (init_key), (encryption_key)) k (key)),
noted AS (
    INSERT INTO audit_events (device_id, keypackage_ref, action, actor, last_resort, at, until)
    SELECT owner, keypackage_ref, 'upload', owner, last_resort, {now}, not_after FROM new)
SELECT keypackage_ref FROM stored",
        owner: Array<BigInt> = &this.owner,
        keypackage_ref: Array<Binary> = &this.keypackage_ref,
        ciphersuite: Array<Integer> = &this.ciphersuite,
        key_package: Array<Binary> = &this.key_package,
        not_after: Array<BigInt> = &this.not_after,
        last_resort: Array<Bool> = &this.last_resort,
        init_key: Array<Binary> = &this.init_key,
        encryption_key: Array<Binary> = &this.encryption_key,
        package_id: Array<Binary> = &this.package_id,
        now: BigInt = &this.now,
    );
});

/// Returns the HPKE keys that their owners have used before, and the current signature keys of these registrations.
pub(super) fn known_keys(
    conn: &mut Conn<'_>,
    keys: &[(i64, &[u8])],
    registrations: &[Registration],
) -> QueryResult<Known> {
    match conn {
        Conn::Postgres(conn) => {
            let (owner, public_key) = keys.iter().copied().unzip();
            let (device, registered_at) = registrations.iter().map(|one| (one.device.0, one.at)).unzip();
            let rows = (KnownKeys { owner, public_key, device, registered_at }).load(*conn)?;
            let mut known = Known::default();
            for (device, suite, key) in rows as Vec<(i64, Option<i32>, Vec<u8>)> {
                match suite {
                    None => known.hpke.push((device, key)),
                    Some(suite) => known.signature.push(((device, suite), key)),
                }
            }
            Ok(known)
        }
        // One prepared statement for each key: SQLite has no round trip to save.
        Conn::Sqlite(sqlite) => {
            let find = |key: &(i64, &[u8])| {
                let found = hpke_keys::table.find(*key).select((hpke_keys::device_id, hpke_keys::public_key));
                found.first(*sqlite).optional().transpose()
            };
            let hpke = keys.iter().filter_map(find).collect::<QueryResult<_>>()?;
            let mut signature = Vec::new();
            for registration in registrations {
                signature.extend(signature_keys::current_keys(conn, *registration)?);
            }
            Ok(Known { hpke, signature })
        }
    }
}

/// Puts KeyPackages into their owners' pools. Returns how many are new. If some are not new, the caller must roll back.
pub(super) fn put(conn: &mut Conn<'_>, packages: &[(i64, &ValidatedKeyPackage)], now: i64) -> QueryResult<usize> {
    let ids: Vec<_> = packages.iter().map(|(_, package)| package_id(package)).collect();
    match conn {
        Conn::Postgres(conn) => {
            let mut put = Put { now, ..Put::default() };
            for ((owner, package), id) in packages.iter().zip(&ids) {
                put.owner.push(*owner);
                put.keypackage_ref.push(package.keypackage_ref.as_bytes());
                put.ciphersuite.push(package.ciphersuite.into());
                put.key_package.push(&package.bytes);
                put.not_after.push(package.not_after.as_second());
                put.last_resort.push(package.last_resort);
                put.init_key.push(&package.init_key);
                put.encryption_key.push(&package.encryption_key);
                put.package_id.push(id);
            }
            put.load::<Vec<u8>>(*conn).map(|stored| stored.len())
        }
        Conn::Sqlite(sqlite) => {
            let rows: Vec<_> =
                packages.iter().zip(&ids).map(|((owner, package), id)| row(*owner, package, id)).collect();
            let stored = diesel::insert_into(key_packages::table).values(rows).on_conflict_do_nothing();
            let stored = stored.execute(*sqlite)?;
            let keys: Vec<_> = packages.iter().flat_map(|(owner, package)| keys(*owner, package)).collect();
            diesel::insert_into(hpke_keys::table).values(keys).execute(*sqlite)?;
            let events: Vec<_> = packages.iter().map(|(owner, package)| event(*owner, package, now)).collect();
            audit::record(conn, &events)?;
            Ok(stored)
        }
    }
}

fn row<'a>(owner: i64, package: &'a ValidatedKeyPackage, id: &'a [u8]) -> NewKeyPackage<'a> {
    NewKeyPackage {
        keypackage_ref: package.keypackage_ref.as_bytes(),
        device_id: owner,
        ciphersuite: i32::from(package.ciphersuite),
        key_package: &package.bytes,
        not_after: package.not_after.as_second(),
        last_resort: package.last_resort,
        state: State::Available.into(),
        package_id: id,
    }
}

/// The package's name in the log; empty if it cannot be named.
fn package_id(package: &ValidatedKeyPackage) -> Vec<u8> {
    KeyPackageFields::parse(&package.bytes).map_or_else(|_| Vec::new(), |fields| PackageId::of(&fields).0.to_vec())
}

fn keys(owner: i64, package: &ValidatedKeyPackage) -> [NewHpkeKey<'_>; 2] {
    [&package.init_key, &package.encryption_key].map(|key| NewHpkeKey {
        device_id: owner,
        public_key: key,
        keypackage_ref: package.keypackage_ref.as_bytes(),
        not_after: package.not_after.as_second(),
    })
}

fn event(owner: i64, package: &ValidatedKeyPackage, now: i64) -> Event<'_> {
    let of = (owner, package.keypackage_ref.as_bytes());
    Event {
        until: Some(package.not_after.as_second()),
        ..Event::plain(of, Action::Upload, Some(owner), package.last_resort, now)
    }
}

#[cfg(test)]
mod tests {
    use diesel::debug_query;

    use super::*;

    /// The statements as `PostgreSQL` gets them. A changed snapshot means that performance must be measured again.
    #[test]
    fn the_statements_are_those_that_were_measured() {
        insta::assert_snapshot!("postgres_put", debug_query::<Pg, _>(&Put::default()).to_string());
        insta::assert_snapshot!("postgres_known_keys", debug_query::<Pg, _>(&KnownKeys::default()).to_string());
    }
}
