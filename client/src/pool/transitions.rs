//! The changes of a KeyPackage's row: the only code that changes its status. Each runs within the caller's transaction.

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::KeyPackageRef;

use super::{
    metadata::{KeyPackageMetadata, ReservationInfo, Spending},
    store::{PoolHistory, PoolStore},
};
use crate::{
    error::{Error, Result},
    key_package_status::KeyPackageStatus,
};

/// How long the keys of a KeyPackage are kept after it expired or was revoked: a Welcome for it may still arrive.
pub(crate) const GRACE: SignedDuration = SignedDuration::from_hours(24);

/// All rows, in the order of expiry.
pub(crate) fn rows(store: &impl PoolStore) -> Result<Vec<KeyPackageMetadata>> {
    let mut rows = store.metadata()?;
    rows.sort_unstable_by(|a, b| (a.not_after, &a.keypackage_ref).cmp(&(b.not_after, &b.keypackage_ref)));
    Ok(rows)
}

/// Changes the status of a KeyPackage. A change that [`KeyPackageStatus::may_become`] does not allow fails with
/// [`Error::InvalidTransition`], and changes nothing.
pub(crate) fn change_status(
    store: &impl PoolStore,
    keypackage_ref: &KeyPackageRef,
    next: KeyPackageStatus,
    now: Timestamp,
) -> Result<()> {
    change(store, keypackage_ref, |row| become_next(row, next, now))
}

/// Records the last reservation of a KeyPackage.
pub(crate) fn record_reservation(
    store: &impl PoolStore,
    keypackage_ref: &KeyPackageRef,
    info: &ReservationInfo,
    now: Timestamp,
) -> Result<()> {
    change(store, keypackage_ref, |row| {
        row.reservation_id = info.reservation_id;
        row.reserved_by = info.reserved_by.as_ref().map(ToString::to_string);
        row.reservation_expires_at = info.expires_at;
        row.reserved_at = row.reserved_at.or(Some(now));
        Ok(())
    })
}

/// Records the spend of a KeyPackage.
pub(crate) fn record_spend(
    store: &impl PoolStore,
    keypackage_ref: &KeyPackageRef,
    spending: &Spending,
    now: Timestamp,
) -> Result<()> {
    change(store, keypackage_ref, |row| {
        become_next(row, KeyPackageStatus::Spent, spending.at.unwrap_or(now))?;
        row.spent_by = spending.by.as_ref().map(ToString::to_string);
        row.spent_group_id = spending.group_id.as_ref().map(|group_id| group_id.0.clone());
        Ok(())
    })
}

/// Records that a KeyPackage failed. Its keys are kept until `keep_until`; `None` if no adder can have it.
pub(crate) fn fail(
    store: &impl PoolStore,
    keypackage_ref: &KeyPackageRef,
    keep_until: Option<Timestamp>,
    now: Timestamp,
) -> Result<()> {
    change(store, keypackage_ref, |row| {
        become_next(row, KeyPackageStatus::Failed, now)?;
        row.keep_until = keep_until;
        Ok(())
    })
}

/// Records that the server no longer hands out a KeyPackage. Its keys stay for [`GRACE`].
pub(crate) fn give_up(store: &impl PoolStore, keypackage_ref: &KeyPackageRef, now: Timestamp) -> Result<()> {
    fail(store, keypackage_ref, Some(now.saturating_add(GRACE).unwrap_or(Timestamp::MAX)), now)
}

/// Records that the server's inventory has every uploaded KeyPackage.
pub(crate) fn confirm_uploaded(store: &impl PoolStore) -> Result<()> {
    for mut row in store.metadata()?.into_iter().filter(|row| row.status == KeyPackageStatus::Uploaded) {
        row.status = KeyPackageStatus::Available;
        store.update_pool_metadata(&row)?;
    }
    Ok(())
}

/// Marks every KeyPackage as superseded, because its signature key is rotated away. This includes spent ones: they must not
/// be mistaken for accepted KeyPackages of the next key.
pub(crate) fn supersede_all(store: &impl PoolStore) -> Result<()> {
    for mut row in store.metadata()?.into_iter().filter(|row| !row.superseded) {
        row.superseded = true;
        store.update_pool_metadata(&row)?;
    }
    Ok(())
}

/// [`supersede_all`] for a rotation. What was found of a second client is forgotten: it has the old key.
pub(crate) fn begin_rotation(store: &impl PoolStore) -> Result<()> {
    store.set_history(&PoolHistory { foreign_at: None, ..store.history()? })?;
    supersede_all(store)
}

fn change(
    store: &impl PoolStore,
    keypackage_ref: &KeyPackageRef,
    change: impl FnOnce(&mut KeyPackageMetadata) -> Result<()>,
) -> Result<()> {
    let row = store.find_metadata(keypackage_ref)?;
    let mut row = row.ok_or_else(|| Error::UnknownKeyPackage(keypackage_ref.clone()))?;
    change(&mut row)?;
    store.update_pool_metadata(&row)
}

fn become_next(row: &mut KeyPackageMetadata, next: KeyPackageStatus, now: Timestamp) -> Result<()> {
    let status = row.status;
    if !status.may_become(next) {
        return Err(Error::InvalidTransition { keypackage_ref: row.keypackage_ref.clone(), status, next });
    }
    row.status = next;
    match next {
        KeyPackageStatus::Created => (row.uploaded_at, row.reserved_at) = (None, None),
        KeyPackageStatus::Uploaded => row.uploaded_at = Some(now),
        KeyPackageStatus::Reserved => row.reserved_at = Some(now),
        KeyPackageStatus::Spent => row.spent_at = Some(now),
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests;
