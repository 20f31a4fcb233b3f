//! The outbox of `PostgreSQL`: events that are not in the log yet. SQLite needs none, since its events are committed in the
//! order of their ids.

use diesel::{
    pg::Pg,
    prelude::*,
    sql_types::{Array, BigInt, Bool, Nullable},
    sqlite::Sqlite,
};

use crate::store::database::{
    Conn,
    sql::{push, statement},
};

/// Takes the oldest rows, starting after a row.
struct Take<'a> {
    after: &'a i64,
    limit: &'a i64,
}

statement!(Take, (BigInt, Array<BigInt>), Pg, PgConnection => |this, out| {
    push!(out, r"DELETE FROM log_outbox WHERE id IN (SELECT id FROM log_outbox WHERE id > {after} ORDER BY id LIMIT {limit})
RETURNING id, events",
        after: BigInt = this.after,
        limit: BigInt = this.limit,
    );
});

/// Takes rows out of the outbox, and returns the number of the last one, how many there were, and their events.
pub(super) fn take(conn: &mut PgConnection, after: i64, limit: i64) -> QueryResult<(Option<i64>, usize, Vec<i64>)> {
    let rows: Vec<(i64, Vec<i64>)> = Take { after: &after, limit: &limit }.load(conn)?;
    let last = rows.iter().map(|(id, _)| *id).max();
    Ok((last, rows.len(), rows.into_iter().flat_map(|(_, events)| events).collect()))
}

/// The first event that is not in the log yet: all before it are, or have no leaf.
pub(in crate::store) fn first_waiting(conn: &mut Conn<'_>) -> QueryResult<i64> {
    let first = |sql: &str| diesel::select(diesel::dsl::sql::<Nullable<BigInt>>(sql));
    let found: Option<i64> = match conn {
        Conn::Postgres(conn) => {
            first("(SELECT min(event) FROM log_outbox, unnest(events) AS event)").get_result(*conn)?
        }
        Conn::Sqlite(conn) => first(
            "(SELECT id FROM audit_events WHERE id > (SELECT last_event FROM log_state) AND step IS NOT NULL \
             ORDER BY id LIMIT 1)",
        )
        .get_result(*conn)?,
    };
    Ok(found.unwrap_or(i64::MAX))
}

/// Whether a row, or on SQLite an event, is there after this one, or a log that has no entry yet.
struct Waits<'a>(&'a i64);

statement!(Waits, Bool,
    Pg, PgConnection => |this, out| {
        push!(out, "SELECT EXISTS (SELECT 1 FROM log_outbox WHERE id > {after}) OR EXISTS (SELECT 1 FROM log_state WHERE size = 0)",
            after: BigInt = this.0,
        );
    },
    Sqlite, SqliteConnection => |this, out| {
        push!(out, "SELECT EXISTS (SELECT 1 FROM audit_events WHERE id > {after}) OR EXISTS (SELECT 1 FROM log_state WHERE size = 0)",
            after: BigInt = this.0,
        );
    },
);

/// Whether anything may wait for the log, without a lock.
pub(super) fn waits(conn: &mut Conn<'_>, after: i64) -> QueryResult<bool> {
    match conn {
        Conn::Postgres(conn) => Waits(&after).get_result(*conn),
        Conn::Sqlite(conn) => Waits(&after).get_result(*conn),
    }
}
