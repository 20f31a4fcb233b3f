//! Answers that are given again when a request is repeated with its `Idempotency-Key`.

use diesel::{prelude::*, upsert::excluded};
use jiff::Timestamp;

use super::{rows::statements, schema::idempotency_keys};

/// What tells a repeated request from a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The SHA-256 of the key.
    pub key: [u8; 32],
    /// The SHA-256 of the request that came with it.
    pub request: [u8; 32],
    /// How long the answer is kept.
    pub until: Timestamp,
}

statements! {
    pub(super) trait IdempotencySql {
        /// Whether the key is new, or free again. A request with the same key that runs now is waited for.
        fn begin_answer(conn, caller: i64, key: &IdempotencyKey, now: i64) -> QueryResult<bool> {
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

        /// The request that the key came with first, and its answer.
        fn answer_of(conn, caller: i64, key: &[u8]) -> QueryResult<(Vec<u8>, Vec<u8>)> {
            idempotency_keys::table
                .find((caller, key))
                .select((idempotency_keys::request, idempotency_keys::answer))
                .first(conn)
        }

        fn keep_answer(conn, caller: i64, key: &[u8], answer: &[u8]) -> QueryResult<usize> {
            diesel::update(idempotency_keys::table.find((caller, key)))
                .set(idempotency_keys::answer.eq(answer))
                .execute(conn)
        }

        fn drop_answer(conn, caller: i64, key: &[u8]) -> QueryResult<usize> {
            diesel::delete(idempotency_keys::table.find((caller, key))).execute(conn)
        }
    }
}
