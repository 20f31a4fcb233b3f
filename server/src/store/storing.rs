//! What uploads add: KeyPackages, the keys that may never come again, and the audit trail's word on each.

use diesel::{
    pg::Pg,
    prelude::*,
    sql_types::{BigInt, Binary, Bool, Integer, Nullable},
};
use keypool_openapi::{Action, State};
use keypool_validation::key_package::ValidatedKeyPackage;

use super::{
    audit::{AuditSql, Event},
    rows::{NewHpkeKey, NewKeyPackage},
    schema::{hpke_keys, key_packages},
    signature_keys::{Registration, SignatureKeySql},
    sql::{columns, statement},
};

/// How each database takes them.
pub(super) trait StoringSql {
    /// Answers which of the HPKE keys their owners had before, and the current signature keys of these registrations.
    fn known_keys(&mut self, keys: &[(i64, &[u8])], registrations: &[Registration]) -> QueryResult<Known>;
    /// Puts KeyPackages into their owners' pools. Answers how many are new: where they are fewer than came, nothing else
    /// may be kept.
    fn put(&mut self, packages: &[(i64, &ValidatedKeyPackage)], now: i64) -> QueryResult<usize>;
}

/// Keys that the database has and an upload is compared with.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// HPKE keys, each with its owner.
    pub hpke: Vec<(i64, Vec<u8>)>,
    /// Current signature keys, by owner and ciphersuite.
    pub signature: Vec<((i64, i32), Vec<u8>)>,
}

/// Keys that their owners may have had before, and registrations whose signature keys are asked for, a column each.
#[derive(Debug, Default)]
struct KnownKeys<'a> {
    owner: Vec<i64>,
    public_key: Vec<&'a [u8]>,
    device: Vec<i64>,
    registered_at: Vec<i64>,
}

// Each is looked up by itself, whatever the planner thinks of joins: LIMIT and OFFSET keep it from making one of them. Both
// kinds of keys come with one statement, since an upload asks for both, and each statement is a round trip.
statement!(KnownKeys, (BigInt, Nullable<Integer>, Binary), Pg, PgConnection => |this, out| {
    out.push_sql("SELECT k.device_id, NULL::integer, k.public_key FROM unnest(");
    columns!(out, BigInt => this.owner, Binary => this.public_key);
    out.push_sql(
        ") AS w (owner, public_key) CROSS JOIN LATERAL (SELECT h.device_id, h.public_key FROM hpke_keys h \
         WHERE h.device_id = w.owner AND h.public_key = w.public_key LIMIT 1) k \
         UNION ALL SELECT s.* FROM unnest(",
    );
    columns!(out, BigInt => this.device, BigInt => this.registered_at);
    out.push_sql(
        ") AS w (device, registered_at) CROSS JOIN LATERAL (SELECT s.device_id, s.ciphersuite, s.signature_key \
         FROM signature_keys s WHERE s.device_id = w.device AND s.registered_at = w.registered_at AND s.until IS NULL \
         OFFSET 0) s",
    );
});

/// KeyPackages that are uploaded, a column each.
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
    now: i64,
}

statement!(Put, Binary, Pg, PgConnection => |this, out| {
    out.push_sql("WITH new AS MATERIALIZED (SELECT * FROM unnest(");
    columns!(
        out,
        BigInt => this.owner,
        Binary => this.keypackage_ref,
        Integer => this.ciphersuite,
        Binary => this.key_package,
        BigInt => this.not_after,
        Bool => this.last_resort,
        Binary => this.init_key,
        Binary => this.encryption_key,
    );
    out.push_sql(
        ") AS w (owner, keypackage_ref, ciphersuite, key_package, not_after, last_resort, init_key, encryption_key)), \
         stored AS (INSERT INTO key_packages (keypackage_ref, device_id, ciphersuite, key_package, not_after, \
         last_resort, state) SELECT keypackage_ref, owner, ciphersuite, key_package, not_after, last_resort, 'available' \
         FROM new ON CONFLICT DO NOTHING RETURNING keypackage_ref), \
         known AS (INSERT INTO hpke_keys (device_id, public_key, keypackage_ref, not_after) \
         SELECT owner, key, keypackage_ref, not_after \
         FROM new CROSS JOIN LATERAL (VALUES (init_key), (encryption_key)) k (key)), \
         noted AS (INSERT INTO audit_events (device_id, keypackage_ref, action, actor, last_resort, at, until) \
         SELECT owner, keypackage_ref, 'upload', owner, last_resort, ",
    );
    out.push_bind_param::<BigInt, _>(&this.now)?;
    out.push_sql(", not_after FROM new) SELECT keypackage_ref FROM stored");
});

impl StoringSql for PgConnection {
    fn known_keys(&mut self, keys: &[(i64, &[u8])], registrations: &[Registration]) -> QueryResult<Known> {
        let (owner, public_key) = keys.iter().copied().unzip();
        let (device, registered_at) = registrations.iter().map(|one| (one.device.0, one.at)).unzip();
        let mut known = Known::default();
        for (device, suite, key) in
            (KnownKeys { owner, public_key, device, registered_at }).load::<(i64, Option<i32>, Vec<u8>)>(self)?
        {
            match suite {
                None => known.hpke.push((device, key)),
                Some(suite) => known.signature.push(((device, suite), key)),
            }
        }
        Ok(known)
    }

    fn put(&mut self, packages: &[(i64, &ValidatedKeyPackage)], now: i64) -> QueryResult<usize> {
        let mut put = Put { now, ..Put::default() };
        for (owner, package) in packages {
            put.owner.push(*owner);
            put.keypackage_ref.push(package.keypackage_ref.as_bytes());
            put.ciphersuite.push(package.ciphersuite.into());
            put.key_package.push(&package.bytes);
            put.not_after.push(package.not_after.as_second());
            put.last_resort.push(package.last_resort);
            put.init_key.push(&package.init_key);
            put.encryption_key.push(&package.encryption_key);
        }
        put.load::<Vec<u8>>(self).map(|stored| stored.len())
    }
}

impl StoringSql for SqliteConnection {
    fn known_keys(&mut self, keys: &[(i64, &[u8])], registrations: &[Registration]) -> QueryResult<Known> {
        // Each by itself, by a statement that is kept prepared: there is no round trip to save.
        let find = |key: &(i64, &[u8])| {
            let found = hpke_keys::table.find(*key).select((hpke_keys::device_id, hpke_keys::public_key));
            found.first(self).optional().transpose()
        };
        let hpke = keys.iter().filter_map(find).collect::<QueryResult<_>>()?;
        let mut signature = Vec::new();
        for registration in registrations {
            signature.extend(self.current_keys(*registration)?);
        }
        Ok(Known { hpke, signature })
    }

    fn put(&mut self, packages: &[(i64, &ValidatedKeyPackage)], now: i64) -> QueryResult<usize> {
        let rows: Vec<_> = packages.iter().map(|(owner, package)| row(*owner, package)).collect();
        let stored = diesel::insert_into(key_packages::table).values(rows).on_conflict_do_nothing().execute(self)?;
        let keys: Vec<_> = packages.iter().flat_map(|(owner, package)| keys(*owner, package)).collect();
        diesel::insert_into(hpke_keys::table).values(keys).execute(self)?;
        let events: Vec<_> = packages.iter().map(|(owner, package)| event(*owner, package, now)).collect();
        self.record(&events)?;
        Ok(stored)
    }
}

fn row(owner: i64, package: &ValidatedKeyPackage) -> NewKeyPackage<'_> {
    NewKeyPackage {
        keypackage_ref: package.keypackage_ref.as_bytes(),
        device_id: owner,
        ciphersuite: i32::from(package.ciphersuite),
        key_package: &package.bytes,
        not_after: package.not_after.as_second(),
        last_resort: package.last_resort,
        state: State::Available.into(),
    }
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

    /// The statements as `PostgreSQL` gets them: a change here is a change of what was measured.
    #[test]
    fn the_statements_are_those_that_were_measured() {
        insta::assert_snapshot!("postgres_put", debug_query::<Pg, _>(&Put::default()).to_string());
        insta::assert_snapshot!("postgres_known_keys", debug_query::<Pg, _>(&KnownKeys::default()).to_string());
    }
}
