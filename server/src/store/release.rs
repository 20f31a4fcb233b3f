//! Release: the adder returns a reservation that it does not need.

use diesel::prelude::*;
use keypool_openapi::{Action, KeyPackageRef, ReservationId, State};

use super::{
    as_of::AsOf,
    audit::{self, Event},
    database::{Conn, Failure, Store, StoreError, rows::nonce_of, schema::key_packages, sql::statements},
    reservations::{ReservationError, holder, unknown},
    steps,
    tokens::{self, ShownToken, TokenRevoked},
};

/// A request to release a reservation.
#[derive(Clone, Debug)]
pub struct Release {
    /// The reservation.
    pub reservation: ReservationId,
    /// The holder's token.
    pub by: ShownToken,
}

/// The result of a release.
#[derive(Clone, Debug)]
pub struct Released {
    /// The KeyPackage.
    pub keypackage_ref: KeyPackageRef,
    /// Its state now.
    pub state: State,
}

/// A KeyPackage that was given back.
#[derive(Queryable)]
pub(super) struct GivenBack {
    keypackage_ref: Vec<u8>,
    package_id: Option<Vec<u8>>,
    step: i32,
    opened: Option<i64>,
}

statements! {
    fn retire(conn, keypackage_ref: &[u8], now: i64) -> QueryResult<usize> {
        diesel::update(key_packages::table.find(keypackage_ref))
            .set((key_packages::state.eq(State::Retired.as_ref()), key_packages::ended_at.eq(now)))
            .execute(conn)
    }

    /// A lapsed reservation counts as released already.
    pub(super) fn release_reserved(conn, release: &Release, as_of: AsOf) -> QueryResult<Option<GivenBack>> {
        let now = as_of.now.as_second();
        diesel::update(key_packages::table)
            .filter(key_packages::device_id.eq(release.reservation.owner))
            .filter(key_packages::reservation.eq(nonce_of(&release.reservation)))
            .filter(key_packages::reserved_by.eq(release.by.device.0))
            .filter(key_packages::held.and(key_packages::reserved_until.gt(now)).and(key_packages::not_after.gt(now)))
            .set((
                key_packages::state.eq(if as_of.retire { State::Retired } else { State::Available }.as_ref()),
                key_packages::ended_at.eq(as_of.retire.then_some(now)),
                key_packages::reserved_until.eq(now),
                key_packages::step.eq(steps::ended_in_row()),
            ))
            .returning((
                key_packages::keypackage_ref,
                key_packages::package_id,
                key_packages::step,
                key_packages::opened,
            ))
            .get_result(conn)
            .optional()
    }
}

fn release(
    conn: &mut Conn<'_>,
    release: &Release,
    as_of: AsOf,
) -> Result<Result<Released, ReservationError>, StoreError> {
    match tokens::hold_caller::<TokenRevoked>(conn, &release.by) {
        Ok(()) => {}
        Err(Failure::Refused(TokenRevoked)) => return Ok(Err(ReservationError::TokenRevoked)),
        Err(Failure::Store(error)) => return Err(error),
    }
    let (owner, nonce) = (release.reservation.owner, nonce_of(&release.reservation));
    if let Some(GivenBack { keypackage_ref, package_id, step, opened }) = release_reserved(conn, release, as_of)? {
        audit::record(
            conn,
            &[Event {
                reservation: Some(nonce),
                package_id: package_id.as_deref(),
                step: Some(step),
                opened,
                ..Event::plain(
                    (owner, &keypackage_ref),
                    Action::Release,
                    Some(release.by.device.0),
                    false,
                    as_of.now.as_second(),
                )
            }],
        )?;
        let now = as_of.now.as_second();
        if steps::is_last(step) && !as_of.retire {
            retire(conn, &keypackage_ref, now)?;
        }
        let state = if as_of.retire || steps::is_last(step) { State::Retired } else { State::Available };
        return Ok(Ok(Released { keypackage_ref: keypackage_ref.into(), state }));
    }
    if let Some(holder) = holder(conn, &release.reservation)? {
        if holder.reserved_by != Some(release.by.device.0) {
            return Ok(Err(ReservationError::NotYours));
        }
        let state = holder.state.parse().map_err(StoreError::fatal)?;
        return Ok(match as_of.state(state, holder.not_after, holder.reserved_until) {
            State::Spent => Err(ReservationError::AlreadySpent),
            state => Ok(Released { keypackage_ref: holder.keypackage_ref.into(), state }),
        });
    }
    let traces = audit::traces(conn, owner, nonce)?;
    Ok(match traces.first() {
        None => Err(unknown(conn)?),
        Some(trace) if trace.actor != Some(release.by.device.0) => Err(ReservationError::NotYours),
        // No row holds a last resort's reservation. A released KeyPackage may have been reserved by another adder
        // since; the release stays valid.
        Some(trace) if trace.last_resort || traces.iter().any(|trace| trace.is(Action::Release)) => {
            Ok(Released { keypackage_ref: trace.keypackage_ref.clone().into(), state: State::Available })
        }
        Some(_) => Err(ReservationError::Lapsed),
    })
}

impl Store {
    /// Releases a reservation.
    ///
    /// # Errors
    /// When the database fails. Nothing is released then.
    pub fn release(&self, request: &Release, as_of: AsOf) -> Result<Result<Released, ReservationError>, StoreError> {
        self.write("release", |conn| release(conn, request, as_of))
    }
}
