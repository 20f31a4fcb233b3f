//! Finds the leaves of reservations and of KeyPackages, with their paths.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use diesel::{
    prelude::*,
    sql_types::{BigInt, Binary},
};
use keypool_openapi::{KeyPackageRef, ReservationId};
use keypool_transparency::{
    answers::Found,
    commitment::Opening,
    leaf::Leaf,
    package::{PackageId, Step, Tag},
};

use super::{
    events::{self, LoggedEvent},
    owners::{Owner, Owners},
    paths::Paths,
    positions::{self, Position},
    state::{self, TreeState},
};
use crate::store::{
    database::{
        Conn, Store, StoreError,
        rows::{DeviceId, nonce_of},
        schema::{audit_events, key_packages},
        sql::{push, statement, statements},
    },
    reservations::ReservationError,
    steps,
};

/// What a caller wants to have proven.
#[derive(Clone, Debug)]
pub enum Asked {
    /// A reservation that it made.
    Reservation(ReservationId),
    /// A KeyPackage that it owns.
    Package(KeyPackageRef),
}

/// What was found of a step.
#[derive(Clone, Debug)]
pub struct StepFound {
    /// The tag of the step.
    pub tag: Tag,
    /// What was found.
    pub found: Found,
    /// The leaf, if it is not in the log yet and the caller may get a receipt of it.
    pub promised: Option<Leaf>,
    /// Whether the caller may get a receipt that the step has not happened.
    pub may_deny: bool,
}

/// The steps that were asked for, and the tree that was read before them.
#[derive(Clone, Debug)]
pub struct Steps {
    /// The tree.
    pub state: TreeState,
    /// The steps, each tag once.
    pub steps: Vec<StepFound>,
    /// Whether there are more than one answer may have.
    pub is_cut: bool,
}

/// The events by reservation that end a hand-out, or that are of a last resort.
struct Ends<'a> {
    owner: i64,
    nonce: &'a [u8],
}

// The condition on the action repeats the index's condition literally.
statement!(Ends, BigInt, both => |this, out| {
    push!(out, r"SELECT id FROM audit_events
WHERE device_id = {owner} AND reservation = {nonce} AND (last_resort OR action <> 'reserve') ORDER BY id",
        owner: BigInt = &this.owner,
        nonce: Binary = this.nonce,
    );
});

/// A KeyPackage as its row has it: ref, name, last step, the event that began its last hand-out, whether it is a last resort.
type PackageColumns = (Vec<u8>, Option<Vec<u8>>, i32, Option<i64>, bool);

const PACKAGE: (
    key_packages::keypackage_ref,
    key_packages::package_id,
    key_packages::step,
    key_packages::opened,
    key_packages::last_resort,
) = (
    key_packages::keypackage_ref,
    key_packages::package_id,
    key_packages::step,
    key_packages::opened,
    key_packages::last_resort,
);

/// The most steps in one answer, each of 1 to 2 kB.
const MOST_STEPS: usize = 4_096;

/// The newest uses of a last resort that are looked at.
const MOST_USES: i64 = 1_000;

statements! {
    fn end_ids(conn, owner: i64, nonce: &[u8]) -> QueryResult<Vec<i64>> {
        Ends { owner, nonce }.load(conn)
    }

    fn opened_by(conn, owner: i64, nonce: &[u8]) -> QueryResult<Vec<Option<i64>>> {
        key_packages::table
            .filter(key_packages::device_id.eq(owner).and(key_packages::reservation.eq(nonce)))
            .select(key_packages::opened)
            .load(conn)
    }

    fn packages(conn, owner: i64, refs: &[&[u8]]) -> QueryResult<Vec<PackageColumns>> {
        key_packages::table
            .filter(key_packages::keypackage_ref.eq_any(refs).and(key_packages::device_id.eq(owner)))
            .select(PACKAGE)
            .load(conn)
    }

    /// The events of a last resort.
    fn uses(conn, owner: i64, keypackage_ref: &[u8]) -> QueryResult<Vec<i64>> {
        let theirs = audit_events::device_id.eq(owner).and(audit_events::keypackage_ref.eq(keypackage_ref));
        audit_events::table
            .filter(audit_events::last_resort.and(theirs).and(audit_events::step.is_not_null()))
            .order(audit_events::id.desc())
            .limit(MOST_USES)
            .select(audit_events::id)
            .load(conn)
    }

    /// The revocations of KeyPackages at rest, which no reservation names.
    fn revoked_at_rest(conn, owner: i64, refs: &[&[u8]]) -> QueryResult<Vec<i64>> {
        audit_events::table
            .filter(audit_events::device_id.eq(owner).and(audit_events::keypackage_ref.eq_any(refs)))
            .filter(audit_events::action.eq("revoke").and(audit_events::reservation.is_null()))
            .filter(audit_events::step.is_not_null())
            .select(audit_events::id)
            .load(conn)
    }
}

/// An event with the one that began its hand-out.
struct Traced {
    event: LoggedEvent,
    opened: Option<LoggedEvent>,
}

/// How much of the leaves the caller may see, and what it may get receipts of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum View {
    /// The caller's own reservation: both levels.
    Own,
    /// An earlier hand-out of a KeyPackage that the caller reserved: how it ended, first level.
    Earlier,
    /// A KeyPackage of the caller's pool that was used: both levels.
    Owner,
    /// A KeyPackage of the caller's pool that was not used: the first level. Before the spend, the owner must not know the group.
    OwnerUnspent,
}

/// What is known of some steps before paths are made.
#[derive(Default)]
struct Collected {
    traced: Vec<(Traced, View)>,
    /// Steps that have not happened, and whether the caller may get a receipt of that.
    none: Vec<(PackageId, Step, bool)>,
}

fn one(conn: &mut Conn<'_>, id: Option<i64>) -> QueryResult<Option<LoggedEvent>> {
    let Some(id) = id else { return Ok(None) };
    Ok(events::by_id(conn, &[id])?.pop())
}

/// The events that ended a hand-out of this reservation.
fn ends(conn: &mut Conn<'_>, owner: i64, nonce: Option<&[u8]>) -> QueryResult<Vec<LoggedEvent>> {
    let Some(nonce) = nonce else { return Ok(Vec::new()) };
    let ids = end_ids(conn, owner, nonce)?;
    let mut ends = events::by_id(conn, &ids)?;
    ends.retain(|end| end.step.is_some());
    ends.sort_unstable_by_key(|end| end.id);
    Ok(ends)
}

/// The hand-outs before the one that began with an event, newest first, each with its ends.
fn hand_outs_before(conn: &mut Conn<'_>, mut opened: Option<i64>) -> QueryResult<Vec<(LoggedEvent, Vec<LoggedEvent>)>> {
    let mut all = Vec::new();
    let mut seen = HashSet::new();
    while let Some(event) = one(conn, opened.filter(|id| seen.insert(*id)))? {
        opened = event.opened;
        let ends = ends(conn, event.device_id, event.reservation.as_deref())?;
        all.push((event, ends));
    }
    Ok(all)
}

/// The event that began the hand-out of a last resort that an event ended.
fn began(event: &LoggedEvent, among: &[LoggedEvent]) -> Option<LoggedEvent> {
    let opened = event.opened.filter(|_| event.last_resort)?;
    among.iter().find(|other| other.id == opened).cloned()
}

fn of_reservation(
    conn: &mut Conn<'_>,
    by: DeviceId,
    id: &ReservationId,
    collected: &mut Collected,
) -> Result<Result<(), ReservationError>, StoreError> {
    let (owner, nonce) = (id.owner, nonce_of(id));
    let own_ends = ends(conn, owner, Some(nonce))?;
    let opened = match opened_by(conn, owner, nonce)?.pop() {
        Some(opened) => opened,
        None => own_ends.first().and_then(|end| end.opened),
    };
    let opened = one(conn, opened)?;
    let Some(actor) = opened.iter().chain(&own_ends).find_map(|event| event.actor) else {
        // Nothing is known of it any more, or it was reserved before there was a log.
        return Ok(Ok(()));
    };
    if actor != by.0 {
        return Ok(Err(ReservationError::NotYours));
    }
    if let Some(opened) = &opened {
        for (event, ends) in hand_outs_before(conn, opened.opened)? {
            collected.traced.extend(
                ends.into_iter().map(|end| (Traced { event: end, opened: Some(event.clone()) }, View::Earlier)),
            );
        }
        if let (true, Some(package)) = (own_ends.is_empty(), opened.package()) {
            let next = opened.steps().into_iter().filter_map(|step| match step {
                Step::Open(n) => Some((package, Step::End(n), false)),
                _ => None,
            });
            collected.none.extend(next);
        }
        collected.traced.push((Traced { event: opened.clone(), opened: None }, View::Own));
    }
    let own: Vec<_> = own_ends
        .iter()
        .map(|event| (Traced { event: event.clone(), opened: began(event, &own_ends).or(opened.clone()) }, View::Own))
        .collect();
    collected.traced.extend(own);
    Ok(Ok(()))
}

/// The steps after the last one of a KeyPackage, which have not happened.
fn next_steps(step: i32) -> [Step; 2] {
    let n = u32::try_from((step >> 2).saturating_add(1)).unwrap_or_default();
    if step & 3 == 1 { [Step::End(n.saturating_sub(1)), Step::Open(n)] } else { [Step::Open(n), Step::End(n)] }
}

fn of_packages(
    conn: &mut Conn<'_>,
    owner: DeviceId,
    refs: &[&[u8]],
    collected: &mut Collected,
) -> Result<(), StoreError> {
    let mut at_rest = Vec::new();
    for (keypackage_ref, package_id, step, opened, last_resort) in packages(conn, owner.0, refs)? {
        let package = package_id.and_then(|id| id.try_into().ok()).map(PackageId);
        if last_resort {
            let ids = uses(conn, owner.0, &keypackage_ref)?;
            let uses = events::by_id(conn, &ids)?;
            let spent: HashSet<_> =
                uses.iter().filter(|event| !event.begins()).map(LoggedEvent::reservation_id).collect();
            for event in &uses {
                let view = if spent.contains(&event.reservation_id()) { View::Owner } else { View::OwnerUnspent };
                collected.traced.push((Traced { event: event.clone(), opened: began(event, &uses) }, view));
            }
            continue;
        }
        for (event, ends) in hand_outs_before(conn, opened)? {
            let view = if ends.iter().any(LoggedEvent::is_spend) { View::Owner } else { View::OwnerUnspent };
            let opened = Some(event.clone());
            collected.traced.push((Traced { event, opened: None }, view));
            let ended = ends.into_iter().map(|end| (Traced { event: end, opened: opened.clone() }, view));
            collected.traced.extend(ended);
        }
        if steps::is_revoked_at_rest(step) {
            at_rest.push(keypackage_ref);
        }
        if let Some(package) = package {
            collected.none.extend(next_steps(step).map(|step| (package, step, true)));
        }
    }
    if !at_rest.is_empty() {
        let refs: Vec<_> = at_rest.iter().map(Vec::as_slice).collect();
        let ids = revoked_at_rest(conn, owner.0, &refs)?;
        let revoked = events::by_id(conn, &ids)?;
        collected.traced.extend(revoked.into_iter().map(|event| (Traced { event, opened: None }, View::OwnerUnspent)));
    }
    Ok(())
}

/// A reservation of which the caller gets no proof, and why.
type Refused = (ReservationId, ReservationError);

/// The steps that were asked for, or why the caller gets none.
pub type Proven = Result<Steps, Refused>;

type Collection = Option<Result<(TreeState, Collected, Vec<positions::Places>), Refused>>;

fn collect(conn: &mut Conn<'_>, by: DeviceId, asked: &[Asked]) -> Result<Collection, StoreError> {
    // The size comes first: else a step that is committed in between would be below the size, and a receipt that denies it
    // would be false.
    let Some(state) = state::read(conn)? else { return Ok(None) };
    let mut collected = Collected::default();
    let mut refs = Vec::new();
    for one in asked {
        match one {
            Asked::Reservation(id) => {
                if let Err(error) = of_reservation(conn, by, id, &mut collected)? {
                    return Ok(Some(Err((*id, error))));
                }
            }
            Asked::Package(keypackage_ref) => refs.push(keypackage_ref.as_bytes()),
        }
    }
    of_packages(conn, by, &refs, &mut collected)?;
    let places = collected.traced.iter().map(|(traced, _)| positions::of(conn, traced.event.id));
    let places = places.collect::<QueryResult<Vec<_>>>()?;
    Ok(Some(Ok((state, collected, places))))
}

/// The opening, as much as the caller may see, if it is the one of the leaf.
fn visible(view: View, leaf: &Leaf, made: Option<&(Leaf, Opening)>) -> Option<Opening> {
    let (_, opening) = made.filter(|(made, _)| made == leaf)?;
    match view {
        View::Own | View::Owner => Some(opening.clone()),
        View::Earlier | View::OwnerUnspent => Some(opening.first_level()),
    }
}

impl Store {
    /// Finds what the log has of reservations of a device and of KeyPackages in its pool. What is forgotten is left out.
    /// Returns `None` if the database has no log.
    ///
    /// # Errors
    /// When the database fails, or the log's tiles are damaged.
    pub fn log_steps(&self, by: DeviceId, asked: &[Asked], owners: &Owners) -> Result<Option<Proven>, StoreError> {
        let (state, collected, places) = match self.read(|conn| collect(conn, by, asked))? {
            None => return Ok(None),
            Some(Err(error)) => return Ok(Some(Err(error))),
            Some(Ok(found)) => found,
        };
        let known = self.owners(owners, &collected)?;
        let steps = self.read(|conn| found(conn, state, &collected, &places, &known))?;
        Ok(Some(Ok(Steps { state, is_cut: steps.len() > MOST_STEPS, steps })))
    }

    fn owners(&self, owners: &Owners, collected: &Collected) -> Result<HashMap<i64, Arc<Owner>>, StoreError> {
        let ids = collected.traced.iter().flat_map(|(Traced { event, opened }, _)| {
            [Some(event.device_id), event.actor, opened.as_ref().and_then(|opened| opened.actor)]
        });
        self.log_owners(owners, ids.flatten())
    }
}

fn found(
    conn: &mut Conn<'_>,
    state: TreeState,
    collected: &Collected,
    places: &[positions::Places],
    owners: &HashMap<i64, Arc<Owner>>,
) -> Result<Vec<StepFound>, StoreError> {
    let (mut steps, mut seen) = (Vec::new(), HashSet::new());
    let mut paths = Paths::of(conn, state)?;
    for ((Traced { event, opened }, view), places) in collected.traced.iter().zip(places) {
        let (Some(package), Some(owner)) = (event.package(), owners.get(&event.device_id)) else { continue };
        let leaves = event.leaves(opened.as_ref(), owners)?;
        for (number, step) in event.steps().into_iter().enumerate() {
            let tag = step.tag(&package);
            let is_wanted = *view != View::Earlier || matches!(step, Step::End(_));
            if steps.len() > MOST_STEPS {
                return Ok(steps);
            }
            if !is_wanted || !seen.insert(tag) {
                continue;
            }
            let made = leaves.get(number).map(|leaf| leaf.seal(&owner.secret));
            let position: Option<Position> = places.get(number).copied().flatten();
            let included = position.map(|position| paths.to(position)).transpose()?.flatten();
            let (found, promised) = match included {
                Some((leaf, index, path, heirs)) => {
                    let opening = visible(*view, &leaf, made.as_ref());
                    (Found::Included { leaf, index, path, opening, heirs }, None)
                }
                None if position.is_some_and(|position| paths.is_pruned(position)) => (Found::Erased, None),
                // Only the caller's own leaves are promised: a receipt of another's would show who reserves when.
                None => (Found::Pending, made.filter(|_| *view == View::Own).map(|(leaf, _)| leaf)),
            };
            steps.push(StepFound { tag, found, promised, may_deny: false });
        }
    }
    for (package, step, may_deny) in &collected.none {
        let tag = step.tag(package);
        if seen.insert(tag) {
            steps.push(StepFound { tag, found: Found::None, promised: None, may_deny: *may_deny });
        }
    }
    Ok(steps)
}
