//! The audit trail: one row a transition, written in the transaction that makes it.
#![allow(clippy::ref_option_ref, reason = "what the Insertable derive writes")]

use diesel::{
    prelude::*,
    sql_types::{BigInt, Binary, Bool, Nullable, Text},
};
use keypool_openapi::{Action, AuditEvent, AuditPage, Base64Bytes, UserName};

use super::{
    Store, StoreError,
    connection::with_conn,
    devices::DeviceSql,
    group_digest::DigestKey,
    rows::{DeviceId, Names, reservation_id, statements, timestamp},
    schema::audit_events::{self, dsl},
    sql::statement,
};

/// One transition.
#[derive(Clone, Copy, Insertable)]
#[diesel(table_name = audit_events, treat_none_as_default_value = false)]
pub(super) struct Event<'a> {
    /// The owner of the KeyPackage.
    pub device_id: i64,
    pub keypackage_ref: &'a [u8],
    /// An [`Action`] by its name.
    pub action: &'static str,
    /// The device that did it; none where time did it, or the operator.
    pub actor: Option<i64>,
    pub reservation: Option<&'a [u8]>,
    pub group_id: Option<&'a [u8]>,
    pub last_resort: bool,
    pub at: i64,
    /// Until when what began holds.
    pub until: Option<i64>,
}

/// A KeyPackage that was the first under a new signature key of its owner. The row says `upload`, since servers
/// of the version before know no other action for it; its key tells it from an upload.
#[derive(Clone, Copy, Insertable)]
#[diesel(table_name = audit_events, treat_none_as_default_value = false)]
pub(super) struct KeyChangeEvent<'a> {
    device_id: i64,
    keypackage_ref: &'a [u8],
    action: &'static str,
    actor: i64,
    last_resort: bool,
    at: i64,
    signature_key: &'a [u8],
}

impl<'a> KeyChangeEvent<'a> {
    pub fn new((owner, keypackage_ref): (i64, &'a [u8]), signature_key: &'a [u8], last_resort: bool, at: i64) -> Self {
        let action = Action::Upload.into();
        Self { device_id: owner, keypackage_ref, action, actor: owner, last_resort, at, signature_key }
    }
}

impl<'a> Event<'a> {
    /// What somebody did to a KeyPackage that no reservation is part of.
    pub fn plain(
        (device_id, keypackage_ref): (i64, &'a [u8]),
        action: Action,
        actor: Option<i64>,
        last_resort: bool,
        at: i64,
    ) -> Self {
        let (action, reservation, group_id, until) = (action.into(), None, None, None);
        Self { device_id, keypackage_ref, action, actor, reservation, group_id, last_resort, at, until }
    }
}

/// What the trail has of a reservation that no KeyPackage carries.
#[derive(Queryable)]
pub(super) struct Trace {
    pub keypackage_ref: Vec<u8>,
    /// Who had the reservation.
    pub actor: Option<i64>,
    pub last_resort: bool,
    action: String,
    pub at: i64,
    pub group_id: Option<Vec<u8>>,
}

impl Trace {
    pub fn is(&self, action: Action) -> bool {
        self.action == <&str>::from(action)
    }
}

/// The trail of a reservation, the oldest first: of a last resort all of it, of any other how it ended, which is noted before
/// the KeyPackage goes to another. So what begins need not be found by its reservation, and costs no entry of an index. The
/// trail of what is forgotten is nobody's.
struct Traces<'a> {
    owner: i64,
    nonce: &'a [u8],
}

type TraceColumns = (Binary, Nullable<BigInt>, Bool, Text, BigInt, Nullable<Binary>);

statement!(Traces, TraceColumns, both => |this, out| {
    out.push_sql("SELECT keypackage_ref, actor, last_resort, action, at, group_id FROM audit_events WHERE device_id = ");
    out.push_bind_param::<BigInt, _>(&this.owner)?;
    out.push_sql(" AND reservation = ");
    out.push_bind_param::<Binary, _>(this.nonce)?;
    // As the index has it, and with no parameter: it would not be known to be the same.
    out.push_sql(
        " AND (last_resort OR action <> 'reserve') AND EXISTS (SELECT 1 FROM key_packages k \
         WHERE k.keypackage_ref = audit_events.keypackage_ref) ORDER BY id",
    );
});

/// An event as the database has it.
#[derive(Queryable, Selectable)]
#[diesel(table_name = audit_events)]
pub(super) struct EventRow {
    id: i64,
    device_id: i64,
    keypackage_ref: Vec<u8>,
    action: String,
    actor: Option<i64>,
    reservation: Option<Vec<u8>>,
    group_id: Option<Vec<u8>>,
    last_resort: bool,
    at: i64,
    until: Option<i64>,
    signature_key: Option<Vec<u8>>,
}

/// Rows of one statement at most: SQLite takes 32,766 values in one, PostgreSQL 65,535, and a row has nine.
const AT_ONCE: usize = 1_000;

statements! {
    pub(super) trait AuditSql {
        fn record(conn, events: &[Event<'_>]) -> QueryResult<usize> {
            match events {
                // What is kept prepared, unlike one for each number of rows.
                [event] => diesel::insert_into(audit_events::table).values(event).execute(conn),
                events => events
                    .chunks(AT_ONCE)
                    .map(|some| diesel::insert_into(audit_events::table).values(some).execute(conn))
                    .sum(),
            }
        }

        fn record_key_change(conn, event: KeyChangeEvent<'_>) -> QueryResult<usize> {
            diesel::insert_into(audit_events::table).values(event).execute(conn)
        }

        fn traces(conn, owner: i64, nonce: &[u8]) -> QueryResult<Vec<Trace>> {
            Traces { owner, nonce }.load(conn)
        }

        fn events_before(conn, owners: &[i64], before: i64, limit: i64) -> QueryResult<Vec<EventRow>> {
            dsl::audit_events
                .filter(dsl::device_id.eq_any(owners).and(dsl::id.lt(before)))
                .order(dsl::id.desc())
                .limit(limit)
                .select(EventRow::as_select())
                .load(conn)
        }

        /// The oldest events by number, which is by the time they were written.
        fn oldest_events(conn, limit: i64) -> QueryResult<Vec<(i64, i64)>> {
            dsl::audit_events.order(dsl::id.asc()).limit(limit).select((dsl::id, dsl::at)).load(conn)
        }

        fn forget_events(conn, ids: &[i64]) -> QueryResult<usize> {
            diesel::delete(dsl::audit_events.filter(dsl::id.eq_any(ids))).execute(conn)
        }
    }
}

fn page<C: AuditSql + DeviceSql>(
    conn: &mut C,
    owners: &[i64],
    (before, limit): (Option<i64>, u32),
    key: &DigestKey,
) -> Result<AuditPage, StoreError> {
    let rows = conn.events_before(owners, before.unwrap_or(i64::MAX), i64::from(limit))?;
    let devices: Vec<_> = rows.iter().flat_map(|row| [Some(row.device_id), row.actor]).flatten().collect();
    let names = Names::from_columns(conn.devices_by_id(&devices)?)?;
    let next = if rows.len() == limit as usize { rows.last().map(|row| row.id) } else { None };
    let events = rows.into_iter().map(|row| event(row, &names, key)).collect::<Result<_, _>>()?;
    Ok(AuditPage { events, next })
}

fn event(row: EventRow, names: &Names, key: &DigestKey) -> Result<AuditEvent, StoreError> {
    let action = match row.signature_key {
        Some(_) => Action::SignatureKeyChanged,
        None => row.action.parse().map_err(StoreError::fatal)?,
    };
    let owner = names.of(row.device_id)?;
    let group_id = match (row.group_id, action) {
        // Its owner is in the group by now.
        (Some(group_id), Action::Spend) => Some(group_id),
        (Some(group_id), _) => Some(key.digest(&owner.user, &group_id)?),
        (None, _) => None,
    };
    Ok(AuditEvent {
        id: row.id,
        at: timestamp(row.at)?,
        action,
        keypackage_ref: row.keypackage_ref.into(),
        owner,
        actor: row.actor.map(|actor| names.of(actor)).transpose()?,
        reservation_id: row.reservation.map(|nonce| reservation_id(row.device_id, &nonce)).transpose()?,
        group_id: group_id.map(Base64Bytes),
        last_resort: row.last_resort,
        until: row.until.map(timestamp).transpose()?,
        signature_key: row.signature_key.map(Base64Bytes),
    })
}

impl Store {
    /// What happened to a device's KeyPackages, the newest first, before the event of this number.
    ///
    /// # Errors
    /// When the database fails.
    pub fn audit(&self, owner: DeviceId, before: Option<i64>, limit: u32) -> Result<AuditPage, StoreError> {
        let key = self.digest_key()?;
        with_conn!(self, read, |conn| page(conn, &[owner.0], (before, limit), &key))
    }

    /// What happened to the KeyPackages of all devices that a user has or had; `None` where the user is unknown.
    ///
    /// # Errors
    /// When the database fails.
    pub fn audit_of_user(
        &self,
        user: &UserName,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Option<AuditPage>, StoreError> {
        let key = self.digest_key()?;
        with_conn!(self, read, |conn| {
            let devices = conn.all_devices_of(user.as_str())?;
            if devices.is_empty() {
                return Ok(None);
            }
            page(conn, &devices, (before, limit), &key).map(Some)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::plans::{migrated, plan};

    /// PostgreSQL is asked in the integration tests.
    #[test]
    fn sqlite_finds_a_reservation_by_the_index_that_is_for_it() {
        let plan = plan(&Traces { owner: 7, nonce: &[9; 16] });
        assert!(plan[0].contains("INDEX audit_events_of_reservation (device_id=? AND reservation=?)"), "{plan:?}");
    }

    #[test]
    fn any_number_of_events_is_noted_at_once() {
        let mut conn = migrated();
        // They are of nobody.
        diesel::sql_query("PRAGMA foreign_keys = OFF").execute(&mut conn).unwrap();
        let events = vec![Event::plain((7, &[1; 32]), Action::Revoke, None, false, 0); 5_000];
        assert_eq!(conn.record(&events), Ok(5_000));
        assert_eq!(conn.record(&[]), Ok(0));
    }
}
