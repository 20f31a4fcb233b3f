//! What the leaves of events are made from.

use std::collections::HashMap;
use std::sync::Arc;

use diesel::prelude::*;
use keypool_openapi::Action;
use keypool_transparency::{
    commitment::{Event, LogSecret, Opening, Record},
    leaf::Leaf,
    package::{Bind, PackageId, ReservationId, Step},
};

use super::owners::Owner;
use crate::store::{
    database::{StoreError, schema::audit_events, sql::statements},
    steps::{self, Leaves},
};

/// An event that has leaves.
#[derive(Clone, Debug, Queryable, Selectable)]
#[diesel(table_name = audit_events)]
pub(super) struct LoggedEvent {
    pub id: i64,
    pub device_id: i64,
    action: String,
    pub actor: Option<i64>,
    pub reservation: Option<Vec<u8>>,
    group_id: Option<Vec<u8>>,
    pub last_resort: bool,
    at: i64,
    until: Option<i64>,
    pub package_id: Option<Vec<u8>>,
    pub step: Option<i32>,
    pub bind: Option<Vec<u8>>,
    pub opened: Option<i64>,
}

statements! {
    pub(super) fn by_id(conn, ids: &[i64]) -> QueryResult<Vec<LoggedEvent>> {
        audit_events::table.filter(audit_events::id.eq_any(ids)).select(LoggedEvent::as_select()).load(conn)
    }

    /// Returns the events after this one that have leaves, in the order of ids.
    pub(super) fn after(conn, event: i64, limit: i64) -> QueryResult<Vec<LoggedEvent>> {
        audit_events::table
            .filter(audit_events::id.gt(event).and(audit_events::step.is_not_null()))
            .order(audit_events::id.asc())
            .limit(limit)
            .select(LoggedEvent::as_select())
            .load(conn)
    }

    pub(super) fn last_id(conn) -> QueryResult<Option<i64>> {
        audit_events::table.select(diesel::dsl::max(audit_events::id)).first(conn)
    }
}

/// A leaf of an event: its step, and what it commits to.
#[derive(Clone, Debug)]
pub(super) struct LeafOf {
    pub step: Step,
    pub record: Record,
}

impl LeafOf {
    pub fn seal(&self, secret: &LogSecret) -> (Leaf, Opening) {
        secret.seal(&self.step, &self.record)
    }
}

fn seconds(at: i64) -> u64 {
    u64::try_from(at).unwrap_or_default()
}

impl LoggedEvent {
    fn is(&self, action: Action) -> bool {
        self.action == <&str>::from(action)
    }

    pub fn is_spend(&self) -> bool {
        self.is(Action::Spend)
    }

    pub fn begins(&self) -> bool {
        self.is(Action::Reserve)
    }

    /// Whether the event that began the hand-out is needed for the leaf.
    pub fn needs_opened(&self) -> bool {
        !self.begins() && (self.bind.is_none() || !self.is(Action::Spend))
    }

    pub fn package(&self) -> Option<PackageId> {
        self.package_id.as_deref().and_then(|id| id.try_into().ok()).map(PackageId)
    }

    pub fn reservation_id(&self) -> ReservationId {
        let nonce = self.reservation.as_deref().and_then(|nonce| nonce.try_into().ok());
        nonce.map_or_else(ReservationId::default, |nonce| ReservationId::new(self.device_id, nonce))
    }

    fn bind_of(&self) -> Option<Bind> {
        self.bind.as_deref().and_then(|bind| bind.try_into().ok()).map(Bind)
    }

    fn event(&self) -> Result<Event, StoreError> {
        Ok(match self.action.parse().map_err(StoreError::fatal)? {
            Action::Reserve => Event::Reserve,
            Action::Spend => Event::Spend,
            Action::Release => Event::Release,
            Action::Lapse => Event::Lapse,
            Action::Revoke => Event::Revoke,
            action => return Err(StoreError::fatal(anyhow::anyhow!("event {} of {action} has a step", self.id))),
        })
    }

    /// Its steps, in their order.
    pub fn steps(&self) -> Vec<Step> {
        let Some(step) = self.step else { return Vec::new() };
        match (steps::leaves(step), self.last_resort) {
            (Leaves::Open(_), true) => vec![Step::Use(self.reservation_id())],
            (_, true) => vec![Step::Used(self.reservation_id())],
            (Leaves::Open(n), false) => vec![Step::Open(n)],
            (Leaves::End(n), false) => vec![Step::End(n)],
            (Leaves::Both(n), false) => vec![Step::Open(n), Step::End(n)],
        }
    }

    /// Its leaves, in the order of its steps. `opened` is the event that began the hand-out, as far as the trail still has it.
    /// Gives none if the package's name is unknown.
    pub fn leaves(&self, opened: Option<&Self>, owners: &HashMap<i64, Arc<Owner>>) -> Result<Vec<LeafOf>, StoreError> {
        let Some(package) = self.package() else { return Ok(Vec::new()) };
        let name = |id: i64| owners.get(&id).map(|owner| owner.name.clone()).unwrap_or_default();
        let event = self.event()?;
        let begun = opened.filter(|_| self.reservation.is_some());
        let holder = match event {
            Event::Revoke => begun.and_then(|begun| begun.actor),
            _ => self.actor.or(begun.and_then(|begun| begun.actor)),
        };
        let group = match event {
            Event::Reserve | Event::Spend => &self.group_id,
            _ => begun.map_or(&None, |begun| &begun.group_id),
        };
        let record = Record {
            event,
            package,
            owner: name(self.device_id),
            at: seconds(self.at),
            until: if event == Event::Reserve { self.until.map_or(0, seconds) } else { 0 },
            actor: holder.map(name).unwrap_or_default(),
            group_id: group.clone().unwrap_or_default(),
            reservation_id: self.reservation_id(),
            bind: self.bind_of().or_else(|| begun.and_then(Self::bind_of)).unwrap_or_default(),
        };
        let leaf = |step: Step| {
            let begins = matches!(step, Step::Open(_) | Step::Use(_));
            let event = if begins { Event::Reserve } else { event };
            LeafOf { step, record: Record { event, ..record.clone() } }
        };
        Ok(self.steps().into_iter().map(leaf).collect())
    }
}
