//! Lists: a device's own pool, and the pools that are low.

use diesel::{
    prelude::*,
    sql_types::{BigInt, Integer, Nullable, Text},
};
use jiff::Timestamp;
use keypool_openapi::{Base64Bytes, InventoryItem, InventoryPage, KeyPackageRef, LowPool, State};

use super::{
    Store, StoreError,
    as_of::AsOf,
    connection::{WholeTable, with_conn},
    devices::DeviceSql,
    rows::{DeviceId, Names, count, reservation_id, statements, suite, timestamp},
    schema::key_packages,
};

/// A KeyPackage as the database has it.
#[derive(Queryable, Selectable)]
#[diesel(table_name = key_packages)]
pub(super) struct ItemRow {
    keypackage_ref: Vec<u8>,
    state: String,
    ciphersuite: i32,
    not_after: i64,
    last_resort: bool,
    device_id: i64,
    reservation: Option<Vec<u8>>,
    reserved_by: Option<i64>,
    reserved_until: Option<i64>,
    ended_at: Option<i64>,
    spent_group: Option<Vec<u8>>,
}

/// A pool with its count, over all devices that are there. `$1` is the time, `$2` the low watermark, `$3` the limit: both
/// databases read them so, where each comes once and in order.
const LOW_POOLS: &str = "\
SELECT d.user_name, d.device_name, k.ciphersuite, d.last_upload, \
       count(*) FILTER (WHERE k.fresh AND k.not_after > $1) AS fresh \
FROM devices d LEFT JOIN key_packages k ON k.device_id = d.id \
WHERE d.removed_at IS NULL \
GROUP BY d.user_name, d.device_name, k.ciphersuite, d.last_upload \
HAVING count(*) FILTER (WHERE k.fresh AND k.not_after > $1) < $2 \
ORDER BY fresh, d.user_name, d.device_name, k.ciphersuite \
LIMIT $3";

/// A row of [`LOW_POOLS`].
#[derive(QueryableByName)]
pub(super) struct LowPoolRow {
    #[diesel(sql_type = Text)]
    user_name: String,
    #[diesel(sql_type = Text)]
    device_name: String,
    #[diesel(sql_type = Nullable<Integer>)]
    ciphersuite: Option<i32>,
    #[diesel(sql_type = Nullable<BigInt>)]
    last_upload: Option<i64>,
    #[diesel(sql_type = BigInt)]
    fresh: i64,
}

statements! {
    pub(super) trait InventorySql {
        fn items_after(conn, owner: i64, after: &[u8], limit: i64) -> QueryResult<Vec<ItemRow>> {
            key_packages::table
                .filter(key_packages::device_id.eq(owner).and(key_packages::keypackage_ref.gt(after)))
                .order((key_packages::device_id.asc(), key_packages::keypackage_ref.asc()))
                .limit(limit)
                .select(ItemRow::as_select())
                .load(conn)
        }

        fn low_pools(conn, low: i64, limit: i64, now: i64) -> QueryResult<Vec<LowPoolRow>> {
            diesel::sql_query(LOW_POOLS)
                .bind::<BigInt, _>(now)
                .bind::<BigInt, _>(low)
                .bind::<BigInt, _>(limit)
                .load(conn)
        }
    }
}

fn inventory<C: InventorySql + DeviceSql>(
    conn: &mut C,
    owner: DeviceId,
    after: Option<&KeyPackageRef>,
    limit: u32,
    as_of: AsOf,
) -> Result<InventoryPage, StoreError> {
    let rows = conn.items_after(owner.0, after.map_or(&[], KeyPackageRef::as_bytes), i64::from(limit))?;
    let reservers: Vec<_> = rows.iter().filter_map(|row| row.reserved_by).collect();
    let names = if reservers.is_empty() { Vec::new() } else { conn.devices_by_id(&reservers)? };
    let names = Names::from_columns(names)?;
    let full = rows.len() == limit as usize;
    let keypackages: Vec<_> = rows.into_iter().map(|row| item(row, &names, as_of)).collect::<Result<_, _>>()?;
    let next = keypackages.last().filter(|_| full).map(|last| last.keypackage_ref.clone());
    Ok(InventoryPage { keypackages, next })
}

fn item(row: ItemRow, names: &Names, as_of: AsOf) -> Result<InventoryItem, StoreError> {
    let state = row.state.parse().map_err(StoreError::fatal)?;
    let reservation_id = row.reservation.map(|nonce| reservation_id(row.device_id, &nonce)).transpose()?;
    let spent_at = row.ended_at.filter(|_| state == State::Spent).map(timestamp).transpose()?;
    Ok(InventoryItem {
        keypackage_ref: row.keypackage_ref.into(),
        state: as_of.state(state, row.not_after, row.reserved_until),
        ciphersuite: suite(row.ciphersuite)?,
        not_after: timestamp(row.not_after)?,
        last_resort: row.last_resort,
        reservation_id,
        reserved_by: row.reserved_by.map(|by| names.of(by)).transpose()?,
        reserved_until: row.reserved_until.map(timestamp).transpose()?,
        spent_at,
        group_id: row.spent_group.map(Base64Bytes),
    })
}

fn low_pool(row: LowPoolRow) -> Result<LowPool, StoreError> {
    Ok(LowPool {
        user: row.user_name.try_into().map_err(StoreError::fatal)?,
        device: row.device_name.try_into().map_err(StoreError::fatal)?,
        ciphersuite: row.ciphersuite.map(suite).transpose()?,
        fresh: count(row.fresh)?,
        last_upload: row.last_upload.map(timestamp).transpose()?,
    })
}

impl Store {
    /// What the server knows of a device's pool, in the order of the refs, after this one.
    ///
    /// # Errors
    /// When the database fails.
    pub fn inventory(
        &self,
        owner: DeviceId,
        after: Option<&KeyPackageRef>,
        limit: u32,
        as_of: AsOf,
    ) -> Result<InventoryPage, StoreError> {
        with_conn!(self, read, |conn| inventory(conn, owner, after, limit, as_of))
    }

    /// The pools with fewer than `low` fresh KeyPackages, the worst first. It looks at every pool: for operators.
    ///
    /// # Errors
    /// When the database fails.
    pub fn low_pools(&self, low: i64, limit: u32, now: Timestamp) -> Result<Vec<LowPool>, StoreError> {
        let rows = with_conn!(self, read, |conn| {
            conn.whole_table(|conn| conn.low_pools(low, i64::from(limit), now.as_second()))
        })?;
        rows.into_iter().map(low_pool).collect()
    }
}
