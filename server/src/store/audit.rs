//! The audit trail: one row for each transition, written in the transition's own transaction.
#![allow(clippy::ref_option_ref, reason = "what the Insertable derive writes")]

mod group_digest;
mod record;

use diesel::{
    expression::SqlLiteral,
    prelude::*,
    sql_types::{BigInt, Binary, Bool, Nullable, Text},
};
use keypool_openapi::{Action, AuditEvent, AuditPage, Base64Bytes, UserName};

use self::group_digest::DigestKey;
pub(super) use self::record::{SQLITE_NEXT_ID, next_id, record};
use super::{
    database::{
        Conn, Store, StoreError,
        rows::{DeviceId, Names, reservation_id, timestamp},
        schema::{
            audit_events::{self, dsl},
            key_packages,
        },
        sql::{push, statement, statements},
    },
    devices, steps,
};

/// One transition of a KeyPackage.
#[derive(Clone, Copy, Insertable)]
#[diesel(table_name = audit_events, treat_none_as_default_value = false)]
pub(super) struct Event<'a> {
    /// The owner of the KeyPackage.
    pub device_id: i64,
    pub keypackage_ref: &'a [u8],
    /// The name of an [`Action`].
    pub action: &'static str,
    /// The device that caused it; `None` for the sweeper and for the operator.
    pub actor: Option<i64>,
    pub reservation: Option<&'a [u8]>,
    pub group_id: Option<&'a [u8]>,
    pub last_resort: bool,
    pub at: i64,
    /// The end of a reservation that begins with this event.
    pub until: Option<i64>,
    /// Its id, if the caller has taken one. SQLite gives it that id by itself.
    #[diesel(skip_insertion)]
    pub id: Option<i64>,
    pub package_id: Option<&'a [u8]>,
    /// The number of the step that it is in the log; `None` if it has no leaf.
    pub step: Option<i32>,
    pub bind: Option<&'a [u8]>,
    pub opened: Option<i64>,
}

/// The event of the first KeyPackage under a new signature key of its owner. Its action is `upload`, because servers of
/// the previous version know no other action for it; the key column tells it from a plain upload.
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
    /// An event without a reservation.
    pub fn plain(
        (device_id, keypackage_ref): (i64, &'a [u8]),
        action: Action,
        actor: Option<i64>,
        last_resort: bool,
        at: i64,
    ) -> Self {
        Self {
            device_id,
            keypackage_ref,
            action: action.into(),
            actor,
            reservation: None,
            group_id: None,
            last_resort,
            at,
            until: None,
            id: None,
            package_id: None,
            step: None,
            bind: None,
            opened: None,
        }
    }
}

/// A KeyPackage and its last reservation.
#[derive(Queryable, Selectable)]
#[diesel(table_name = key_packages)]
pub(super) struct LastReservation {
    pub keypackage_ref: Vec<u8>,
    device_id: i64,
    reservation: Option<Vec<u8>>,
    pub reserved_by: Option<i64>,
    reserved_until: Option<i64>,
    package_id: Option<Vec<u8>>,
    pub step: i32,
    /// The event that began it.
    pub opened: Option<i64>,
}

impl LastReservation {
    /// The event that records the lapse.
    pub fn lapse(&self, now: i64) -> Event<'_> {
        let at = self.reserved_until.unwrap_or(now);
        let plain = Event::plain((self.device_id, &self.keypackage_ref), Action::Lapse, self.reserved_by, false, at);
        Event {
            reservation: self.reservation.as_deref(),
            package_id: self.package_id.as_deref(),
            step: Some(steps::ended(self.step)),
            opened: self.opened,
            ..plain
        }
    }
}

/// A KeyPackage that its owner or the operator has withdrawn just now.
#[derive(Queryable)]
pub(super) struct Withdrawn {
    pub keypackage_ref: Vec<u8>,
    last_resort: bool,
    package_id: Option<Vec<u8>>,
    step: i32,
    opened: Option<i64>,
    /// The reservation that ended with it.
    reservation: Option<Vec<u8>>,
}

/// The columns of [`Withdrawn`], for a statement that withdraws.
#[diesel::dsl::auto_type(no_type_alias)]
pub(super) fn withdrawn() -> _ {
    let reservation: SqlLiteral<Nullable<Binary>> = steps::ended_reservation();
    (
        key_packages::keypackage_ref,
        key_packages::last_resort,
        key_packages::package_id,
        key_packages::step,
        key_packages::opened,
        reservation,
    )
}

impl Withdrawn {
    /// The event that records it.
    pub fn revoke(&self, owner: i64, by: Option<i64>, now: i64) -> Event<'_> {
        Event {
            reservation: self.reservation.as_deref(),
            package_id: self.package_id.as_deref(),
            step: (!self.last_resort).then_some(self.step),
            opened: self.opened.filter(|_| self.reservation.is_some()),
            ..Event::plain((owner, &self.keypackage_ref), Action::Revoke, by, self.last_resort, now)
        }
    }
}

/// The audit trail's record of a reservation that no KeyPackage row has any more.
#[derive(Queryable)]
pub(super) struct Trace {
    pub id: i64,
    pub keypackage_ref: Vec<u8>,
    /// The device that had the reservation.
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

/// Reads the events of a reservation, oldest first. For a last resort it has all of them; for any other KeyPackage,
/// only the end, which is recorded before another adder reserves it. So events that begin a reservation need no index
/// entry by reservation. Events of a deleted KeyPackage belong to no owner.
struct Traces<'a> {
    owner: i64,
    nonce: &'a [u8],
}

type TraceColumns = (BigInt, Binary, Nullable<BigInt>, Bool, Text, BigInt, Nullable<Binary>);

// The condition on the action repeats the index's condition literally: with a parameter, the planner could not match
// it.
statement!(Traces, TraceColumns, both => |this, out| {
    push!(out, r"SELECT id, keypackage_ref, actor, last_resort, action, at, group_id FROM audit_events
WHERE device_id = {owner} AND reservation = {nonce} AND (last_resort OR action <> 'reserve')
    AND EXISTS (SELECT 1 FROM key_packages k WHERE k.keypackage_ref = audit_events.keypackage_ref)
ORDER BY id",
        owner: BigInt = &this.owner,
        nonce: Binary = this.nonce,
    );
});

/// An event's row.
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
    package_id: Option<Vec<u8>>,
    step: Option<i32>,
}

impl EventRow {
    /// The number of the step, if the event is in the log.
    fn logged(&self) -> Option<i32> {
        // A package that cannot be read has an empty name, and no leaves.
        self.step.filter(|_| self.package_id.as_ref().is_some_and(|id| !id.is_empty()))
    }
}

statements! {
    pub(super) fn record_key_change(conn, event: KeyChangeEvent<'_>) -> QueryResult<usize> {
        diesel::insert_into(audit_events::table).values(event).execute(conn)
    }

    pub(super) fn traces(conn, owner: i64, nonce: &[u8]) -> QueryResult<Vec<Trace>> {
        Traces { owner, nonce }.load(conn)
    }

    pub(super) fn events_before(conn, owners: &[i64], before: i64, limit: i64) -> QueryResult<Vec<EventRow>> {
        dsl::audit_events
            .filter(dsl::device_id.eq_any(owners).and(dsl::id.lt(before)))
            .order(dsl::id.desc())
            .limit(limit)
            .select(EventRow::as_select())
            .load(conn)
    }

    /// Returns the oldest events by id, which is the order of writing: id, time and owner.
    pub(super) fn oldest_events(conn, limit: i64) -> QueryResult<Vec<(i64, i64, i64)>> {
        dsl::audit_events.order(dsl::id.asc()).limit(limit).select((dsl::id, dsl::at, dsl::device_id)).load(conn)
    }

    pub(super) fn forget_events(conn, ids: &[i64]) -> QueryResult<usize> {
        diesel::delete(dsl::audit_events.filter(dsl::id.eq_any(ids))).execute(conn)
    }
}

fn page(
    conn: &mut Conn<'_>,
    owners: &[i64],
    (before, limit): (Option<i64>, u32),
    key: &DigestKey,
) -> Result<AuditPage, StoreError> {
    let rows = events_before(conn, owners, before.unwrap_or(i64::MAX), i64::from(limit))?;
    let devices: Vec<_> = rows.iter().flat_map(|row| [Some(row.device_id), row.actor]).flatten().collect();
    let names = Names::from_columns(devices::devices_by_id(conn, &devices)?)?;
    let next = if rows.len() == limit as usize { rows.last().map(|row| row.id) } else { None };
    let events = rows.into_iter().map(|row| event(row, &names, key)).collect::<Result<_, _>>()?;
    Ok(AuditPage { events, next, log: None })
}

fn event(row: EventRow, names: &Names, key: &DigestKey) -> Result<AuditEvent, StoreError> {
    let action = match row.signature_key {
        Some(_) => Action::SignatureKeyChanged,
        None => row.action.parse().map_err(StoreError::fatal)?,
    };
    let owner = names.of(row.device_id)?;
    let logged = row.logged();
    let group_id = match (row.group_id, action) {
        // After the spend, the owner is in the group and may see its id.
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
        handout: logged.and_then(|step| steps::handout(step, row.last_resort)),
        leaves: logged.map_or(0, |step| steps::count(step, row.last_resort)),
    })
}

impl Store {
    /// Returns the events of a device's KeyPackages, newest first, starting before this event id.
    ///
    /// # Errors
    /// When the database fails.
    pub fn audit(&self, owner: DeviceId, before: Option<i64>, limit: u32) -> Result<AuditPage, StoreError> {
        let key = self.digest_key()?;
        self.read(|conn| page(conn, &[owner.0], (before, limit), &key))
    }

    /// Returns the events of the KeyPackages of all devices that a user has or had; `None` if the user is unknown.
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
        self.read(|conn| {
            let devices = devices::all_devices_of(conn, user.as_str())?;
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
    use crate::store::database::plans::{migrated, plan};

    /// The integration tests check the plans of PostgreSQL.
    #[test]
    fn sqlite_finds_a_reservation_by_the_index_that_is_for_it() {
        let plan = plan(&Traces { owner: 7, nonce: &[9; 16] });
        assert!(plan[0].contains("INDEX audit_events_of_reservation (device_id=? AND reservation=?)"), "{plan:?}");
    }

    #[test]
    fn any_number_of_events_is_noted_at_once() {
        let mut sqlite = migrated();
        // The test rows refer to devices that do not exist.
        diesel::sql_query("PRAGMA foreign_keys = OFF").execute(&mut sqlite).unwrap();
        let mut conn = Conn::Sqlite(&mut sqlite);
        let events = vec![Event::plain((7, &[1; 32]), Action::Revoke, None, false, 0); 5_000];
        record(&mut conn, &events).unwrap();
        record(&mut conn, &[]).unwrap();
        assert_eq!(oldest_events(&mut conn, 10_000).unwrap().len(), 5_000);
    }
}
