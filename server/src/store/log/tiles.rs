//! Tiles and entry bundles, the widest of each.

use std::cell::RefCell;

use diesel::prelude::*;
use keypool_transparency::{
    tile::{TileId, TileKind, bundle_prefix},
    tree::TileStore,
};

use crate::store::database::{Conn, Store, StoreError, schema::log_tiles, sql::statements};

/// The level under which entry bundles are kept.
const ENTRIES: i16 = -1;

fn level(kind: TileKind) -> i16 {
    match kind {
        TileKind::Hashes(level) => level.into(),
        TileKind::Entries => ENTRIES,
    }
}

statements! {
    fn kept(conn, k: i32, level: i16, number: i64) -> QueryResult<Option<Vec<u8>>> {
        log_tiles::table.find((k, level, number)).select(log_tiles::bytes).first(conn).optional()
    }

    fn keep(conn, k: i32, level: i16, number: i64, bytes: &[u8]) -> QueryResult<usize> {
        diesel::insert_into(log_tiles::table)
            .values((
                log_tiles::k.eq(k),
                log_tiles::level.eq(level),
                log_tiles::number.eq(number),
                log_tiles::bytes.eq(bytes),
            ))
            .on_conflict((log_tiles::k, log_tiles::level, log_tiles::number))
            .do_update()
            .set(log_tiles::bytes.eq(bytes))
            .execute(conn)
    }

    fn forget(conn, k: i32, from: i64, until: i64) -> QueryResult<usize> {
        let its = log_tiles::k.eq(k).and(log_tiles::level.eq(ENTRIES));
        let old = its.and(log_tiles::number.ge(from)).and(log_tiles::number.lt(until));
        diesel::delete(log_tiles::table.filter(old)).execute(conn)
    }
}

/// Forgets bundles of entries: these, without the last one.
pub(super) fn forget_bundles(conn: &mut Conn<'_>, k: i32, (from, until): (i64, i64)) -> QueryResult<usize> {
    forget(conn, k, from, until)
}

pub(super) fn write(conn: &mut Conn<'_>, k: i32, tiles: &[(TileId, Vec<u8>)]) -> Result<(), StoreError> {
    for (tile, bytes) in tiles {
        let number = i64::try_from(tile.index).map_err(StoreError::fatal)?;
        keep(conn, k, level(tile.kind), number, bytes)?;
    }
    Ok(())
}

/// The tiles of one log.
pub(super) struct Tiles<'c, 'd> {
    conn: RefCell<&'c mut Conn<'d>>,
    k: i32,
}

impl<'c, 'd> Tiles<'c, 'd> {
    pub fn of(conn: &'c mut Conn<'d>, k: i32) -> Self {
        Self { conn: RefCell::new(conn), k }
    }
}

impl TileStore for Tiles<'_, '_> {
    type Error = StoreError;

    fn read(&self, tile: &TileId) -> Result<Option<Vec<u8>>, StoreError> {
        let number = i64::try_from(tile.index).map_err(StoreError::fatal)?;
        Ok(kept(&mut self.conn.borrow_mut(), self.k, level(tile.kind), number)?)
    }
}

impl Store {
    /// Returns a tile or bundle as a tree that has it this wide has it; `None` if the log is not so large, or the tile is
    /// pruned.
    ///
    /// # Errors
    /// When the database fails, or a bundle is damaged.
    pub fn log_tile(&self, k: i32, tile: &TileId) -> Result<Option<Vec<u8>>, StoreError> {
        let Ok(number) = i64::try_from(tile.index) else { return Ok(None) };
        let Some(mut bytes) = self.read(|conn| kept(conn, k, level(tile.kind), number))? else { return Ok(None) };
        let length = match tile.kind {
            TileKind::Hashes(_) => usize::from(tile.width) * 32,
            TileKind::Entries => match bundle_prefix(&bytes, tile.width) {
                Ok(prefix) => prefix.len(),
                // It has fewer entries.
                Err(_) => usize::MAX,
            },
        };
        if length > bytes.len() {
            return Ok(None);
        }
        bytes.truncate(length);
        Ok(Some(bytes))
    }
}
