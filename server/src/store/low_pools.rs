//! Lists the pools that are low or empty.

use diesel::{
    prelude::*,
    sql_types::{BigInt, Integer, Nullable, Text},
};
use keypool_openapi::{DeviceName, LowPool, UserName};

use super::{
    as_of::AsOf,
    database::{
        Store, StoreError,
        rows::{count, suite, timestamp},
        sql::statements,
    },
};

/// Where a page of low pools begins: after the pool with this count, of this user, device and ciphersuite.
pub type LowPoolPlace = (u64, UserName, DeviceName, Option<u16>);

/// The pools of the devices that have uploaded KeyPackages, each with its count. A device without any KeyPackage that the
/// database knows has a pool without a ciphersuite.
///
/// Both databases read the binds if each occurs in order: `$1` is the second until which a KeyPackage must be valid, `$2`
/// the low watermark, `$3` to `$6` the place after which the page begins, `$7` the limit.
const LOW_POOLS: &str = "\
SELECT * FROM ( \
    SELECT d.user_name, d.device_name, coalesce(k.ciphersuite, -1) AS ciphersuite, d.last_upload, \
           count(CASE WHEN k.fresh AND k.not_after >= $1 THEN 1 END) AS fresh \
    FROM devices d LEFT JOIN key_packages k ON k.device_id = d.id \
    WHERE d.removed_at IS NULL AND d.last_upload IS NOT NULL \
    GROUP BY d.user_name, d.device_name, k.ciphersuite, d.last_upload) p \
WHERE fresh < $2 AND (fresh, user_name, device_name, ciphersuite) > ($3, $4, $5, $6) \
ORDER BY fresh, user_name, device_name, ciphersuite \
LIMIT $7";

/// A row of [`LOW_POOLS`].
#[derive(QueryableByName)]
pub(super) struct LowPoolRow {
    #[diesel(sql_type = Text)]
    user_name: String,
    #[diesel(sql_type = Text)]
    device_name: String,
    #[diesel(sql_type = Integer)]
    ciphersuite: i32,
    #[diesel(sql_type = Nullable<BigInt>)]
    last_upload: Option<i64>,
    #[diesel(sql_type = BigInt)]
    fresh: i64,
}

statements! {
    pub(super) fn low_pools(
        conn,
        usable_until: i64,
        low: i64,
        after: &(i64, &str, &str, i32),
        limit: i64
    ) -> QueryResult<Vec<LowPoolRow>> {
        diesel::sql_query(LOW_POOLS)
            .bind::<BigInt, _>(usable_until)
            .bind::<BigInt, _>(low)
            .bind::<BigInt, _>(after.0)
            .bind::<Text, _>(after.1)
            .bind::<Text, _>(after.2)
            .bind::<Integer, _>(after.3)
            .bind::<BigInt, _>(limit)
            .load(conn)
    }
}

/// The number that stands for a pool without a ciphersuite in the database, before all others.
const NO_SUITE: i32 = -1;

fn low_pool(row: LowPoolRow) -> Result<LowPool, StoreError> {
    Ok(LowPool {
        user: row.user_name.try_into().map_err(StoreError::fatal)?,
        device: row.device_name.try_into().map_err(StoreError::fatal)?,
        ciphersuite: (row.ciphersuite != NO_SUITE).then(|| suite(row.ciphersuite)).transpose()?,
        fresh: count(row.fresh)?,
        last_upload: row.last_upload.map(timestamp).transpose()?,
    })
}

impl Store {
    /// Lists the pools with fewer than `low` fresh KeyPackages, the smallest first, starting after this place. For
    /// operators: it reads every pool.
    ///
    /// # Errors
    /// When the database fails.
    pub fn low_pools(
        &self,
        low: u64,
        after: Option<&LowPoolPlace>,
        limit: u32,
        as_of: AsOf,
    ) -> Result<Vec<LowPool>, StoreError> {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let after = after.map_or((-1, "", "", NO_SUITE), |(fresh, user, device, suite)| {
            (signed(*fresh), user.as_str(), device.as_str(), suite.map_or(NO_SUITE, i32::from))
        });
        let page = (as_of.usable_until(), signed(low), i64::from(limit));
        let rows = self.read_whole_tables(|conn| low_pools(conn, page.0, page.1, &after, page.2))?;
        rows.into_iter().map(low_pool).collect()
    }
}
