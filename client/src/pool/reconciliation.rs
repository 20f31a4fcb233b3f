//! Reconciles the local rows with the server's inventory.

use std::collections::HashMap;

use jiff::Timestamp;
use keypool_openapi::{InventoryItem, KeyPackageRef, State};

use super::{
    key_packages::KeyPackagePool,
    metadata::{KeyPackageMetadata, ReservationInfo, Spending},
    store::PoolStore,
    transitions::{change_status, give_up, record_reservation, record_spend, rows},
};
use crate::{error::Result, key_package_status::KeyPackageStatus};

/// The result of a reconciliation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reconciliation {
    /// The number of rows that changed.
    pub(crate) changed: usize,
    /// The KeyPackages to revoke: the server could hand them out, but their keys are missing here, or they were used.
    pub(crate) to_revoke: Vec<KeyPackageRef>,
    /// The number of unknown KeyPackages that were never handed out. No join of this device explains their missing
    /// keys.
    pub(crate) foreign: usize,
}

/// Updates the rows from the complete inventory, in one transaction, and returns what the server has to revoke.
pub(crate) fn reconcile(
    pool: &KeyPackagePool<'_, impl PoolStore>,
    inventory: Vec<InventoryItem>,
    now: Timestamp,
) -> Result<Reconciliation> {
    let store = pool.store;
    let mut items: HashMap<_, _> = inventory.into_iter().map(|item| (item.keypackage_ref.clone(), item)).collect();
    let mut found = Reconciliation::default();
    store.transaction(|| {
        for row in rows(store)? {
            let item = items.remove(&row.keypackage_ref);
            if row.status.is_live() && !pool.has_keys(&row.keypackage_ref)? {
                // A row without keys is useless.
                store.delete_pool_metadata(&row.keypackage_ref)?;
                found.changed += 1;
                found.to_revoke.extend(item.filter(is_live).map(|item| item.keypackage_ref));
                continue;
            }
            let changed = match item {
                Some(item) if is_live(&item) && !row.status.is_live() => {
                    found.to_revoke.push(item.keypackage_ref);
                    false
                }
                Some(item) => update_row(store, &row, &item, now)?,
                None => handle_missing(store, &row, now)?,
            };
            found.changed += usize::from(changed);
        }
        Ok(())
    })?;
    let without_row: Vec<_> = items.into_values().filter(is_live).collect();
    found.foreign = without_row.iter().filter(|item| item.reservation_id.is_none()).count();
    found.to_revoke.extend(without_row.into_iter().map(|item| item.keypackage_ref));
    found.to_revoke.sort_unstable();
    Ok(found)
}

fn is_live(item: &InventoryItem) -> bool {
    matches!(item.state, State::Available | State::Reserved)
}

/// Updates a row from its inventory item. Returns whether the row changed.
fn update_row(store: &impl PoolStore, row: &KeyPackageMetadata, item: &InventoryItem, now: Timestamp) -> Result<bool> {
    let next = match item.state {
        State::Available => KeyPackageStatus::Available,
        State::Reserved => KeyPackageStatus::Reserved,
        State::Spent => KeyPackageStatus::Spent,
        // After a change of the signature key, the server ends a reserved KeyPackage of the old key with its
        // reservation.
        State::Expired if row.superseded && row.not_after > now => KeyPackageStatus::Failed,
        State::Expired => KeyPackageStatus::Expired,
        State::Revoked | State::Retired => KeyPackageStatus::Failed,
    };
    let reservation_is_news = item.reservation_id.is_some() && item.reservation_id != row.reservation_id;
    if reservation_is_news {
        let info = ReservationInfo {
            reservation_id: item.reservation_id,
            reserved_by: item.reserved_by.clone(),
            expires_at: item.reserved_until,
        };
        record_reservation(store, &row.keypackage_ref, &info, now)?;
    }
    if row.status == next {
        return Ok(reservation_is_news);
    }
    if row.status == KeyPackageStatus::Created {
        // The server has it, so the upload succeeded.
        change_status(store, &row.keypackage_ref, KeyPackageStatus::Uploaded, now)?;
    } else if !row.status.may_become(next) {
        return Ok(reservation_is_news);
    }
    match next {
        KeyPackageStatus::Spent => {
            let (by, group_id, at) = (item.reserved_by.clone(), item.group_id.clone(), item.spent_at);
            record_spend(store, &row.keypackage_ref, &Spending { by, group_id, at }, now)?;
        }
        KeyPackageStatus::Failed => give_up(store, &row.keypackage_ref, now)?,
        _ => change_status(store, &row.keypackage_ref, next, now)?,
    }
    Ok(true)
}

/// Handles a KeyPackage that the server does not know: it is uploaded again, unless an adder may have it.
fn handle_missing(store: &impl PoolStore, row: &KeyPackageMetadata, now: Timestamp) -> Result<bool> {
    let keypackage_ref = &row.keypackage_ref;
    match row.status {
        KeyPackageStatus::Uploaded | KeyPackageStatus::Available if !row.superseded => {
            change_status(store, keypackage_ref, KeyPackageStatus::Created, now)?;
        }
        KeyPackageStatus::Uploaded | KeyPackageStatus::Available | KeyPackageStatus::Reserved => {
            give_up(store, keypackage_ref, now)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
