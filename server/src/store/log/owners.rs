//! Names of devices, and the secrets of owners.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use diesel::prelude::*;
use keypool_transparency::commitment::LogSecret;
use moka::sync::Cache;
use rand::{TryRng, rngs::SysRng};

use crate::store::{
    database::{
        Conn, Store, StoreError,
        rows::Names,
        schema::{audit_events, devices as device_rows, log_secrets},
        sql::statements,
    },
    devices,
};

/// The most devices that are remembered. Each takes some 200 bytes.
const REMEMBERED: u64 = 100_000;

/// How long a device is remembered: a secret that the database has forgotten must not stay here.
const FORGET_AFTER: Duration = Duration::from_hours(1);

/// The most devices in one statement.
const AT_ONCE: usize = 1_000;

/// A device as its leaves need it. None of this ever changes.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Its name, `user/device`.
    pub name: String,
    /// The secret from which the salts of its leaves are derived.
    pub secret: LogSecret,
}

/// Remembers devices. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Owners(Cache<i64, Arc<Owner>>);

impl Default for Owners {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(REMEMBERED).time_to_live(FORGET_AFTER).build())
    }
}

statements! {
    fn removed(conn, ids: &[i64]) -> QueryResult<Vec<i64>> {
        let removed = device_rows::id.eq_any(ids).and(device_rows::removed_at.is_not_null());
        device_rows::table.filter(removed).select(device_rows::id).load(conn)
    }

    fn has_events(conn, device: i64) -> QueryResult<bool> {
        let events = audit_events::table.filter(audit_events::device_id.eq(device));
        diesel::select(diesel::dsl::exists(events)).get_result(conn)
    }

    fn forget_secret(conn, device: i64) -> QueryResult<usize> {
        diesel::delete(log_secrets::table.find(device)).execute(conn)
    }

    fn secrets(conn, ids: &[i64]) -> QueryResult<Vec<(i64, Vec<u8>)>> {
        log_secrets::table.filter(log_secrets::device_id.eq_any(ids)).load(conn)
    }

    /// If another server has stored a secret first, that secret stays.
    fn keep_secrets(conn, new: &[(i64, [u8; 32])]) -> QueryResult<usize> {
        let rows: Vec<_> = new
            .iter()
            .map(|(id, secret)| (log_secrets::device_id.eq(*id), log_secrets::secret.eq(secret.as_slice())))
            .collect();
        diesel::insert_into(log_secrets::table).values(rows).on_conflict_do_nothing().execute(conn)
    }
}

impl Owners {
    /// Returns the devices with these ids, in a transaction that may write: it makes the secrets that are missing.
    pub(super) fn of(
        &self,
        conn: &mut Conn<'_>,
        ids: impl IntoIterator<Item = i64>,
    ) -> Result<HashMap<i64, Arc<Owner>>, StoreError> {
        let (mut all, mut missing) = (HashMap::new(), Vec::new());
        for id in ids {
            if all.contains_key(&id) || missing.contains(&id) {
                continue;
            }
            match self.0.get(&id) {
                Some(owner) => drop(all.insert(id, owner)),
                None => missing.push(id),
            }
        }
        for some in missing.chunks(AT_ONCE) {
            all.extend(load(conn, some)?);
        }
        Ok(all)
    }

    /// Remembers devices. Call it only after the transaction that may have made their secrets is committed.
    pub(super) fn remember(&self, owners: HashMap<i64, Arc<Owner>>) {
        for (id, owner) in owners {
            self.0.insert(id, owner);
        }
    }
}

impl Store {
    /// Returns the devices with these ids, and makes the secrets that are missing.
    ///
    /// # Errors
    /// When the database fails, or the operating system gives no random bytes.
    pub fn log_owners(
        &self,
        owners: &Owners,
        ids: impl IntoIterator<Item = i64>,
    ) -> Result<HashMap<i64, Arc<Owner>>, StoreError> {
        let (mut all, mut missing) = (HashMap::new(), HashSet::new());
        for id in ids {
            match owners.0.get(&id) {
                Some(owner) => drop(all.insert(id, owner)),
                None => drop(missing.insert(id)),
            }
        }
        if !missing.is_empty() {
            let made = self.write("log_owners", |conn| owners.of(conn, missing.iter().copied()))?;
            owners.remember(made.clone());
            all.extend(made);
        }
        Ok(all)
    }
}

/// Deletes the secrets of those of these devices that are removed and have no events in the trail any more. Their leaves are noise
/// then: nobody can tell what they commit to.
pub(in crate::store) fn forget_secrets(conn: &mut Conn<'_>, devices: &[i64]) -> QueryResult<()> {
    for device in removed(conn, devices)? {
        if !has_events(conn, device)? {
            forget_secret(conn, device)?;
        }
    }
    Ok(())
}

fn load(conn: &mut Conn<'_>, ids: &[i64]) -> Result<Vec<(i64, Arc<Owner>)>, StoreError> {
    let mut known: HashMap<i64, Vec<u8>> = secrets(conn, ids)?.into_iter().collect();
    let missing: Vec<_> = ids.iter().copied().filter(|id| !known.contains_key(id)).collect();
    if !missing.is_empty() {
        let mut new = Vec::new();
        for id in &missing {
            let mut secret = [0; 32];
            SysRng.try_fill_bytes(&mut secret).map_err(StoreError::fatal)?;
            new.push((*id, secret));
        }
        keep_secrets(conn, &new)?;
        known.extend(secrets(conn, &missing)?);
    }
    let names = Names::from_columns(devices::devices_by_id(conn, ids)?)?;
    let mut owners = Vec::new();
    for id in ids {
        let secret = known.remove(id).and_then(|secret| secret.try_into().ok());
        let secret =
            secret.ok_or_else(|| StoreError::fatal(anyhow::anyhow!("device {id} has no secret of the log")))?;
        owners.push((*id, Arc::new(Owner { name: names.of(*id)?.to_string(), secret: LogSecret(secret) })));
    }
    Ok(owners)
}
