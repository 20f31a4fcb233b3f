//! Where the leaves of events are: a number of eight bytes for each of the two leaves that an event can have. Its first two
//! bytes are the number of the log, the others the leaf's index there.

use std::collections::BTreeMap;

use diesel::prelude::*;

use crate::store::database::{Conn, StoreError, schema::log_positions, sql::statements};

/// The events of a row.
const EVENTS: i64 = 256;

/// The bytes of an event.
const SIZE: usize = 16;

/// Where a leaf is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// The number of the log.
    pub k: i32,
    /// The leaf's index in it.
    pub index: u64,
}

impl Position {
    fn to_bytes(self) -> Result<[u8; 8], StoreError> {
        let k = u16::try_from(self.k).map_err(StoreError::fatal)?;
        if self.index >> 48 != 0 {
            return Err(StoreError::fatal(anyhow::anyhow!("the log is full")));
        }
        Ok((u64::from(k) << 48 | self.index).to_be_bytes())
    }

    fn from_bytes(bytes: [u8; 8]) -> Option<Self> {
        let number = u64::from_be_bytes(bytes);
        let k = i32::try_from(number >> 48).ok().filter(|k| *k > 0)?;
        Some(Self { k, index: number & ((1 << 48) - 1) })
    }
}

/// The leaves of an event, in the order of its steps.
pub(super) type Places = [Option<Position>; 2];

fn place(event: i64) -> (i64, usize) {
    (event.div_euclid(EVENTS), usize::try_from(event.rem_euclid(EVENTS)).unwrap_or_default() * SIZE)
}

statements! {
    fn rows(conn, chunks: &[i64]) -> QueryResult<Vec<(i64, Vec<u8>)>> {
        log_positions::table.filter(log_positions::chunk.eq_any(chunks)).load(conn)
    }

    fn row(conn, chunk: i64) -> QueryResult<Option<Vec<u8>>> {
        log_positions::table.find(chunk).select(log_positions::positions).first(conn).optional()
    }

    fn write_row(conn, chunk: i64, positions: &[u8]) -> QueryResult<usize> {
        diesel::insert_into(log_positions::table)
            .values((log_positions::chunk.eq(chunk), log_positions::positions.eq(positions)))
            .on_conflict(log_positions::chunk)
            .do_update()
            .set(log_positions::positions.eq(positions))
            .execute(conn)
    }

    fn forget_rows(conn, before: i64, most: i64) -> QueryResult<usize> {
        let old = diesel::alias!(log_positions as old);
        let chunk = old.field(log_positions::chunk);
        let old = old.filter(chunk.lt(before)).order(chunk).limit(most).select(chunk);
        diesel::delete(log_positions::table.filter(log_positions::chunk.eq_any(old))).execute(conn)
    }
}

/// Forgets the positions of events before this one, as far as whole rows have none of it and of later ones.
pub(super) fn forget(conn: &mut Conn<'_>, event: i64, most: i64) -> QueryResult<usize> {
    forget_rows(conn, place(event).0, most)
}

/// Adds the positions of events. The caller holds the log's state.
pub(super) fn write(conn: &mut Conn<'_>, k: i32, leaves: &[(i64, [Option<u64>; 2])]) -> Result<(), StoreError> {
    let mut chunks: BTreeMap<i64, Vec<u8>> = BTreeMap::new();
    for (event, _) in leaves {
        chunks.entry(place(*event).0).or_default();
    }
    let known: Vec<_> = chunks.keys().copied().collect();
    chunks.extend(rows(conn, &known)?);
    for (event, indices) in leaves {
        let (chunk, from) = place(*event);
        let bytes = chunks.entry(chunk).or_default();
        bytes.resize(usize::try_from(EVENTS).unwrap_or_default() * SIZE, 0);
        for (slot, index) in bytes[from..from + SIZE].as_chunks_mut().0.iter_mut().zip(indices) {
            if let Some(index) = *index {
                *slot = Position { k, index }.to_bytes()?;
            }
        }
    }
    for (chunk, positions) in &chunks {
        write_row(conn, *chunk, positions)?;
    }
    Ok(())
}

/// Where the leaves of an event are. None is there yet if it is not in the log.
pub(super) fn of(conn: &mut Conn<'_>, event: i64) -> QueryResult<Places> {
    let (chunk, from) = place(event);
    let mut places = Places::default();
    if let Some(slots) = row(conn, chunk)?.as_ref().and_then(|bytes| bytes.get(from..from + SIZE)) {
        for (place, slot) in places.iter_mut().zip(slots.as_chunks().0) {
            *place = Position::from_bytes(*slot);
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::database::plans::migrated;

    #[test]
    fn positions_of_several_logs_and_events_stand_side_by_side() {
        let mut sqlite = migrated();
        let mut conn = Conn::Sqlite(&mut sqlite);
        write(&mut conn, 1, &[(255, [Some(0), None]), (256, [Some(7), Some(1)])]).unwrap();
        write(&mut conn, 2, &[(257, [Some((1 << 48) - 1), None])]).unwrap();
        let at = |k, index| Some(Position { k, index });
        assert_eq!(of(&mut conn, 255), Ok([at(1, 0), None]));
        assert_eq!(of(&mut conn, 256), Ok([at(1, 7), at(1, 1)]));
        assert_eq!(of(&mut conn, 257), Ok([at(2, (1 << 48) - 1), None]));
        assert_eq!(of(&mut conn, 258), Ok([None, None]));
        assert!(write(&mut conn, 1, &[(1, [Some(1 << 48), None])]).is_err());
    }
}
