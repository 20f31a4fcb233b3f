//! Lists the KeyPackages of a device.

use diesel::prelude::*;
use keypool_openapi::{Base64Bytes, InventoryItem, InventoryPage, KeyPackageRef, State};

use super::{
    as_of::AsOf,
    database::{
        Conn, Store, StoreError,
        rows::{DeviceId, Names, reservation_id, suite, timestamp},
        schema::key_packages,
        sql::statements,
    },
    devices,
};

/// A KeyPackage's row.
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

statements! {
    pub(super) fn items_after(conn, owner: i64, after: &[u8], limit: i64) -> QueryResult<Vec<ItemRow>> {
        key_packages::table
            .filter(key_packages::device_id.eq(owner).and(key_packages::keypackage_ref.gt(after)))
            .order((key_packages::device_id.asc(), key_packages::keypackage_ref.asc()))
            .limit(limit)
            .select(ItemRow::as_select())
            .load(conn)
    }
}

fn inventory(
    conn: &mut Conn<'_>,
    owner: DeviceId,
    after: Option<&KeyPackageRef>,
    limit: u32,
    as_of: AsOf,
) -> Result<InventoryPage, StoreError> {
    let rows = items_after(conn, owner.0, after.map_or(&[], KeyPackageRef::as_bytes), i64::from(limit))?;
    let reservers: Vec<_> = rows.iter().filter_map(|row| row.reserved_by).collect();
    let names = if reservers.is_empty() { Vec::new() } else { devices::devices_by_id(conn, &reservers)? };
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

impl Store {
    /// Lists the KeyPackages of a device in the order of their refs, starting after this ref.
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
        self.read(|conn| inventory(conn, owner, after, limit, as_of))
    }
}
