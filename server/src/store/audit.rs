//! The audit trail: one row a transition, written in the transaction that makes it.
#![allow(clippy::ref_option_ref, reason = "what the Insertable derive writes")]

use diesel::prelude::*;
use strum::IntoStaticStr;

use super::{
    rows::statements,
    schema::audit_events::{self, dsl},
};

/// What was done with a KeyPackage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum Action {
    Upload,
    Reserve,
    Spend,
    Release,
    Revoke,
}

/// One transition.
#[derive(Clone, Copy, Insertable)]
#[diesel(table_name = audit_events, treat_none_as_default_value = false)]
pub(super) struct Event<'a> {
    /// The owner of the KeyPackage.
    pub device_id: i64,
    pub keypackage_ref: &'a [u8],
    /// An [`Action`] by its name.
    pub action: &'static str,
    /// The device that did it.
    pub actor: i64,
    pub reservation: Option<&'a [u8]>,
    pub group_id: Option<&'a [u8]>,
    pub last_resort: bool,
    pub at: i64,
}

/// How a reservation began, as the audit trail remembers it.
#[derive(Queryable)]
pub(super) struct ReservedEvent {
    pub keypackage_ref: Vec<u8>,
    pub actor: i64,
    pub last_resort: bool,
}

statements! {
    pub(super) trait AuditSql {
        fn record(conn, events: &[Event<'_>]) -> QueryResult<usize> {
            diesel::insert_into(audit_events::table).values(events).execute(conn)
        }

        fn reserved_event(conn, owner: i64, nonce: &[u8]) -> QueryResult<Option<ReservedEvent>> {
            dsl::audit_events
                .filter(dsl::device_id.eq(owner).and(dsl::reservation.eq(nonce)))
                .filter(dsl::action.eq(<&str>::from(Action::Reserve)))
                .select((dsl::keypackage_ref, dsl::actor, dsl::last_resort))
                .first(conn)
                .optional()
        }

        /// When the reservation met the action first, and for which group.
        fn event_of(conn, owner: i64, nonce: &[u8], action: Action) -> QueryResult<Option<(i64, Option<Vec<u8>>)>> {
            dsl::audit_events
                .filter(dsl::device_id.eq(owner).and(dsl::reservation.eq(nonce)))
                .filter(dsl::action.eq(<&str>::from(action)))
                .order(dsl::id.asc())
                .select((dsl::at, dsl::group_id))
                .first(conn)
                .optional()
        }

        fn last_resort_uses(conn, owner: i64, refs: &[Vec<u8>]) -> QueryResult<Vec<(Vec<u8>, i64)>> {
            dsl::audit_events
                .filter(dsl::device_id.eq(owner).and(dsl::last_resort))
                .filter(dsl::keypackage_ref.eq_any(refs).and(dsl::action.eq(<&str>::from(Action::Reserve))))
                .group_by(dsl::keypackage_ref)
                .select((dsl::keypackage_ref, diesel::dsl::count_star()))
                .load(conn)
        }
    }
}
