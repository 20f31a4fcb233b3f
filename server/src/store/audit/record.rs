//! Inserts events, and on `PostgreSQL` puts those that have leaves into the log's outbox: one row a transaction.

use diesel::{
    pg::Pg,
    prelude::*,
    sql_types::{Array, BigInt, Binary, Bool, Integer, Nullable, Text},
};

use super::Event;
use crate::store::database::{
    Conn,
    schema::audit_events,
    sql::{push, statement},
};

/// The most rows in one statement. SQLite allows 32,766 values, and a row has fourteen.
const AT_ONCE: usize = 1_000;

/// Events to insert, one column for each field.
#[derive(Debug, Default)]
struct Record<'a> {
    id: Vec<Option<i64>>,
    device_id: Vec<i64>,
    keypackage_ref: Vec<&'a [u8]>,
    action: Vec<&'a str>,
    actor: Vec<Option<i64>>,
    reservation: Vec<Option<&'a [u8]>>,
    group_id: Vec<Option<&'a [u8]>>,
    last_resort: Vec<bool>,
    at: Vec<i64>,
    until: Vec<Option<i64>>,
    package_id: Vec<Option<&'a [u8]>>,
    step: Vec<Option<i32>>,
    bind: Vec<Option<&'a [u8]>>,
    opened: Vec<Option<i64>>,
}

statement!(Record, (), Pg, PgConnection => |this, out| {
    push!(out, r"WITH noted AS (
    INSERT INTO audit_events (id, device_id, keypackage_ref, action, actor, reservation, group_id, last_resort, at, until,
        package_id, step, bind, opened)
    SELECT coalesce(id, nextval('audit_events_id_seq')), device_id, keypackage_ref, action, actor, reservation, group_id,
        last_resort, at, until, package_id, step, bind, opened
    FROM unnest({id}, {device_id}, {keypackage_ref}, {action}, {actor}, {reservation}, {group_id}, {last_resort}, {at}, {until},
                {package_id}, {step}, {bind}, {opened})
        AS w (id, device_id, keypackage_ref, action, actor, reservation, group_id, last_resort, at, until,
              package_id, step, bind, opened)
    RETURNING id, step)
INSERT INTO log_outbox (events) SELECT array_agg(id) FROM noted WHERE step IS NOT NULL
HAVING count(*) > 0 AND EXISTS (SELECT 1 FROM log_origins)",
        id: Array<Nullable<BigInt>> = &this.id,
        device_id: Array<BigInt> = &this.device_id,
        keypackage_ref: Array<Binary> = &this.keypackage_ref,
        action: Array<Text> = &this.action,
        actor: Array<Nullable<BigInt>> = &this.actor,
        reservation: Array<Nullable<Binary>> = &this.reservation,
        group_id: Array<Nullable<Binary>> = &this.group_id,
        last_resort: Array<Bool> = &this.last_resort,
        at: Array<BigInt> = &this.at,
        until: Array<Nullable<BigInt>> = &this.until,
        package_id: Array<Nullable<Binary>> = &this.package_id,
        step: Array<Nullable<Integer>> = &this.step,
        bind: Array<Nullable<Binary>> = &this.bind,
        opened: Array<Nullable<BigInt>> = &this.opened,
    );
});

impl<'a> Record<'a> {
    fn of(events: &[Event<'a>]) -> Self {
        let mut all = Self::default();
        for event in events {
            all.id.push(event.id);
            all.device_id.push(event.device_id);
            all.keypackage_ref.push(event.keypackage_ref);
            all.action.push(event.action);
            all.actor.push(event.actor);
            all.reservation.push(event.reservation);
            all.group_id.push(event.group_id);
            all.last_resort.push(event.last_resort);
            all.at.push(event.at);
            all.until.push(event.until);
            all.package_id.push(event.package_id);
            all.step.push(event.step);
            all.bind.push(event.bind);
            all.opened.push(event.opened);
        }
        all
    }
}

/// Records events.
pub(in crate::store) fn record(conn: &mut Conn<'_>, events: &[Event<'_>]) -> QueryResult<()> {
    match (conn, events) {
        (_, []) => Ok(()),
        (Conn::Postgres(conn), events) => Record::of(events).execute(*conn).map(drop),
        // A statement for one row stays prepared; a statement for many rows differs with their number.
        (Conn::Sqlite(conn), [event]) => {
            diesel::insert_into(audit_events::table).values(event).execute(*conn).map(drop)
        }
        (Conn::Sqlite(conn), events) => events
            .chunks(AT_ONCE)
            .try_for_each(|some| diesel::insert_into(audit_events::table).values(some).execute(*conn).map(drop)),
    }
}

/// Takes an id for an event that will be recorded in this transaction: the KeyPackage's row names the event that began its
/// hand-out.
pub(in crate::store) fn next_id(conn: &mut Conn<'_>) -> QueryResult<i64> {
    match conn {
        Conn::Postgres(conn) => {
            diesel::select(diesel::dsl::sql::<BigInt>("nextval('audit_events_id_seq')")).get_result(*conn)
        }
        Conn::Sqlite(conn) => diesel::select(diesel::dsl::sql::<BigInt>(SQLITE_NEXT_ID)).get_result(*conn),
    }
}

/// SQL: the id that the next event gets on SQLite, where nobody else inserts meanwhile.
pub(in crate::store) const SQLITE_NEXT_ID: &str =
    "(SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name = 'audit_events')";
