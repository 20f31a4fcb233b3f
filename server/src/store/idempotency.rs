//! Kept answers, returned again when a request is repeated with its `Idempotency-Key`.

use diesel::{prelude::*, upsert::excluded};
use jiff::Timestamp;

use super::database::{schema::idempotency_keys, sql::statements};

/// Tells a repeated request from a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The SHA-256 of the key.
    pub key: [u8; 32],
    /// The SHA-256 of the request that has the key.
    pub request: [u8; 32],
    /// The time until which the answer is kept.
    pub until: Timestamp,
}

statements! {
    /// Claims the key, and returns whether it was new or expired. Waits for a concurrent request with the same key.
    pub(super) fn begin_answer(conn, caller: i64, key: &IdempotencyKey, now: i64) -> QueryResult<bool> {
        use idempotency_keys as k;
        let upsert = diesel::insert_into(k::table)
            .values((
                k::device_id.eq(caller),
                k::key.eq(key.key.as_slice()),
                k::request.eq(key.request.as_slice()),
                k::answer.eq(Vec::new()),
                k::expires_at.eq(key.until.as_second()),
            ))
            .on_conflict((k::device_id, k::key))
            .do_update()
            .set((k::request.eq(excluded(k::request)), k::expires_at.eq(excluded(k::expires_at))));
        diesel::query_dsl::methods::FilterDsl::filter(upsert, k::expires_at.le(now)).execute(conn).map(|rows| rows == 1)
    }

    /// Returns the digest of the first request with this key, and its answer.
    pub(super) fn answer_of(conn, caller: i64, key: &[u8]) -> QueryResult<(Vec<u8>, Vec<u8>)> {
        idempotency_keys::table
            .find((caller, key))
            .select((idempotency_keys::request, idempotency_keys::answer))
            .first(conn)
    }

    pub(super) fn keep_answer(conn, caller: i64, key: &[u8], answer: &[u8]) -> QueryResult<usize> {
        diesel::update(idempotency_keys::table.find((caller, key)))
            .set(idempotency_keys::answer.eq(answer))
            .execute(conn)
    }

    pub(super) fn drop_answer(conn, caller: i64, key: &[u8]) -> QueryResult<usize> {
        diesel::delete(idempotency_keys::table.find((caller, key))).execute(conn)
    }
}
