//! Upload: puts KeyPackages into a pool.

mod check;
mod insert;
mod request;
mod twin;

use std::collections::HashMap;

use diesel::{
    prelude::*,
    result::{DatabaseErrorKind, Error},
};
use keypool_openapi::{Action, State};
use keypool_validation::key_package::ValidatedKeyPackage;

use self::check::UploadCheck;
use super::{
    as_of::AsOf,
    audit::{self, Event, KeyChangeEvent},
    database::{
        Conn, Failure, Store, StoreError,
        rows::Ended,
        schema::{devices, key_packages},
        sql::statements,
    },
    locks,
    signature_keys::{self, change_key, withdraw},
    tokens::TokenRevoked,
};
pub use request::{Upload, UploadLimits, UploadOutcome, Uploaded};

statements! {
    pub(super) fn retire_last_resort(conn, owner: i64, suite: i32, now: i64) -> QueryResult<Vec<Vec<u8>>> {
        diesel::update(key_packages::table)
            .filter(key_packages::device_id.eq(owner).and(key_packages::ciphersuite.eq(suite)))
            .filter(key_packages::last_resort.and(key_packages::state.eq(State::Available.as_ref())))
            .filter(key_packages::not_after.gt(now))
            .set(Ended::new(State::Revoked, now))
            .returning(key_packages::keypackage_ref)
            .get_results(conn)
    }

    pub(super) fn mark_uploads(conn, owners: &[i64], now: i64) -> QueryResult<usize> {
        let theirs = devices::table.filter(devices::id.eq_any(owners));
        diesel::update(theirs).set(devices::last_upload.eq(now)).execute(conn)
    }
}

/// Runs uploads of several devices, one each. The transaction holds the devices' rows.
fn upload(
    conn: &mut Conn<'_>,
    uploads: &[Upload<'_>],
    limits: UploadLimits,
    as_of: AsOf,
) -> Result<Vec<Uploaded>, StoreError> {
    let now = as_of.now.as_second();
    let mut check = UploadCheck::about(conn, uploads, limits, as_of)?;
    let (mut all, mut stored, mut uploaders, mut first_of_new_keys) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for upload in uploads {
        if upload.replace {
            check.begin_replacement(conn, *upload, now)?;
        }
        let changes = check.begin_changes(conn, *upload, now)?;
        let outcomes = check.check(*upload, as_of);
        let new: Vec<_> = upload
            .packages
            .iter()
            .zip(&outcomes)
            .filter(|(_, outcome)| **outcome == UploadOutcome::Stored)
            .map(|(package, _)| (upload.owner(), package))
            .collect();
        let mut uploaded = Uploaded::default();
        for change in changes {
            // The key changes only together with an accepted KeyPackage under the new key.
            if let Some(first) = new.iter().find(|(_, package)| package.ciphersuite == change.ciphersuite) {
                uploaded.told = change_key(conn, upload.by, change, as_of)?;
                first_of_new_keys.push(*first);
            }
        }
        if upload.replace {
            uploaded.replaced = replace(conn, *upload, &outcomes, as_of)?;
        }
        stored.extend(new);
        if outcomes.iter().any(|outcome| matches!(outcome, UploadOutcome::Stored | UploadOutcome::Known)) {
            uploaders.push(upload.owner());
        }
        all.push(Uploaded { outcomes, ..uploaded });
    }
    for key in &check.first {
        signature_keys::open_key(conn, key)?;
    }
    put(conn, &stored, now)?;
    for (owner, package) in first_of_new_keys {
        let of = (owner, package.keypackage_ref.as_bytes());
        audit::record_key_change(conn, KeyChangeEvent::new(of, &package.signature_key, package.last_resort, now))?;
    }
    if !uploaders.is_empty() {
        mark_uploads(conn, &uploaders, now)?;
    }
    Ok(all)
}

/// Withdraws what an upload takes the place of, in each ciphersuite of which it has brought something. Returns how many
/// KeyPackages were revoked.
fn replace(
    conn: &mut Conn<'_>,
    upload: Upload<'_>,
    outcomes: &[UploadOutcome],
    as_of: AsOf,
) -> Result<usize, StoreError> {
    let mut revoked = 0;
    for suite in upload.suites() {
        let of_suite = || upload.packages.iter().zip(outcomes).filter(|(package, _)| package.ciphersuite == suite);
        if !of_suite().any(|(_, outcome)| matches!(outcome, UploadOutcome::Stored | UploadOutcome::Known)) {
            continue;
        }
        let but: Vec<_> = of_suite().map(|(package, _)| package.keypackage_ref.as_bytes()).collect();
        revoked += withdraw(conn, (upload.owner(), i32::from(suite)), &but, as_of)?;
    }
    Ok(revoked)
}

/// Runs the first upload of each device whose row no other transaction has locked and whose token is still valid. An
/// element is `None` if its upload did not run.
fn upload_idle(
    conn: &mut Conn<'_>,
    uploads: &[Upload<'_>],
    limits: UploadLimits,
    as_of: AsOf,
) -> Result<Vec<Option<Uploaded>>, StoreError> {
    let owners: Vec<_> = uploads.iter().map(Upload::owner).collect();
    let mut tokens: HashMap<_, _> = locks::hold_idle(conn, &owners)?.into_iter().collect();
    let mut is_valid =
        |upload: &Upload<'_>| tokens.remove(&upload.owner()).is_some_and(|token| token == upload.token_hash);
    let are_valid: Vec<_> = uploads.iter().map(&mut is_valid).collect();
    let valid: Vec<_> = uploads.iter().zip(&are_valid).filter_map(|(upload, valid)| valid.then_some(*upload)).collect();
    let mut outcomes = upload(conn, &valid, limits, as_of)?.into_iter();
    Ok(are_valid.into_iter().map(|valid| valid.then(|| outcomes.next()).flatten()).collect())
}

fn put(conn: &mut Conn<'_>, packages: &[(i64, &ValidatedKeyPackage)], now: i64) -> Result<(), StoreError> {
    if packages.is_empty() {
        return Ok(());
    }
    for (owner, package) in packages.iter().filter(|(_, package)| package.last_resort) {
        for retired in retire_last_resort(conn, *owner, i32::from(package.ciphersuite), now)? {
            audit::record(conn, &[Event::plain((*owner, &retired), Action::Revoke, Some(*owner), true, now)])?;
        }
    }
    if insert::put(conn, packages, now)? < packages.len() {
        // Another device stored the same KeyPackage after the check. Run the transaction again: the check then refuses
        // it.
        return Err(Error::DatabaseError(
            DatabaseErrorKind::SerializationFailure,
            Box::new("a KeyPackage of this upload was uploaded by another device at the same time".to_owned()),
        )
        .into());
    }
    Ok(())
}

impl Store {
    /// Puts valid KeyPackages into their owner's pool, and changes the owner's signature keys.
    ///
    /// # Errors
    /// `TokenRevoked`, or when the database fails. Nothing of the upload is stored then.
    pub fn upload(
        &self,
        one: Upload<'_>,
        limits: UploadLimits,
        as_of: AsOf,
    ) -> Result<Uploaded, Failure<TokenRevoked>> {
        self.write("upload", |conn| {
            if locks::hold_device(conn, one.owner())?.is_none_or(|token_hash| token_hash != one.token_hash) {
                return Err(TokenRevoked.into());
            }
            Ok(upload(conn, &[one], limits, as_of)?.pop().unwrap_or_default())
        })
    }

    /// Runs several uploads in one transaction, without waiting for a lock. An element is `None` if its upload must run
    /// alone: an earlier upload of the batch is of the same device, another transaction has locked the device, or its
    /// token was revoked.
    ///
    /// # Errors
    /// When the database fails. Nothing of any upload is stored then.
    pub fn upload_batch(
        &self,
        uploads: &[Upload<'_>],
        limits: UploadLimits,
        as_of: AsOf,
    ) -> Result<Vec<Option<Uploaded>>, StoreError> {
        self.write("upload_batch", |conn| upload_idle(conn, uploads, limits, as_of))
    }
}
