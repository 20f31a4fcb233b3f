//! The outbox of `PostgreSQL`: events that are not in the log yet. SQLite needs none, since its events are committed in the
//! order of their ids.

use diesel::{
    pg::Pg,
    prelude::*,
    sql_types::{Array, BigInt},
};

use crate::store::database::sql::{push, statement};

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
