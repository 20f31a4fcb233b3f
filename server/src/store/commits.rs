//! The commit fence: accepts one Commit for each epoch, together with the reservations that it spends and its Welcome.

use std::collections::{BTreeSet, HashSet};

use diesel::{dsl::max, prelude::*};
use jiff::Timestamp;
use keypool_openapi::{DeviceOf, MessageKind, Proof, ReservationId, State, Undelivered};

use super::{
    database::{Conn, Failure, Store, StoreError, rows::DeviceId, schema::commits, sql::statements},
    devices,
    group_infos::{self, NewGroupInfo, is_current, may_come_back},
    idempotency::{self, IdempotencyKey},
    queues::{Delivered, NewEnvelope, Part, Post, envelope, found, own_devices, queue},
    reservations::ReservationError,
    restore,
    spend::{Spend, Spent, spend_first},
    tokens::{TokenRevoked, hold_caller},
};

/// A reservation, with the `bind` of its reserve if the caller wants a receipt.
pub type BoundReservation = (ReservationId, Option<[u8; 32]>);

/// A Commit, with the reservations that it spends and the Welcome that it brings.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The Commit message and its recipients.
    pub post: Post,
    /// The epoch that the Commit was made in.
    pub epoch: i64,
    /// The SHA-256 of the Commit.
    pub digest: [u8; 32],
    /// The Welcome, for the owners of the spent reservations.
    pub welcome: Option<Vec<u8>>,
    /// The reservations that the Commit spends.
    pub reservations: Vec<BoundReservation>,
    /// The SHA-256 of the sender's proof of membership.
    pub proof_digest: Option<[u8; 32]>,
    /// The SHA-256 of the proof that the next Commit must show.
    pub next_proof_digest: Option<[u8; 32]>,
    /// The GroupInfo of the epoch after the Commit, and the devices in the group.
    pub info: Option<NewGroupInfo>,
    /// Whether a device comes back into the group by it (RFC 9420, section 12.4.3.2). The service has verified that the
    /// caller's device signed it for this epoch.
    pub is_external: bool,
}

/// The result of a Commit.
#[derive(Clone, Debug, Default)]
pub struct Accepted {
    /// Where the Commit and its Welcome were queued.
    pub delivered: Delivered,
    /// What was spent; nothing if the Commit was accepted before.
    pub spent: Vec<(Spend, Spent)>,
    /// Whether the GroupInfo that it brings is kept.
    pub is_kept: bool,
}

/// The reason why a Commit was not accepted. Nothing has changed then.
#[derive(Debug)]
pub enum CommitError {
    /// The caller's token has been revoked.
    TokenRevoked,
    /// The group is in this epoch, which differs from the Commit's.
    Stale(i64),
    /// The Commit does not show the proof that the Commit before it requires.
    NotAMember,
    /// The caller is not among the devices that were in the group after its newest Commit.
    NotListed,
    /// The queue of the reservation's owner has no capacity for the Welcome.
    QueueFull(ReservationId, DeviceOf),
    /// A reservation cannot be spent.
    Reservation(ReservationId, ReservationError),
}

impl From<TokenRevoked> for CommitError {
    fn from(TokenRevoked: TokenRevoked) -> Self {
        Self::TokenRevoked
    }
}

/// Epoch, digest of the proof that the next Commit must show, and time of arrival.
type NewestCommit = (i64, Option<Vec<u8>>, i64);

statements! {
    pub(super) fn newest_commit(conn, group_id: &[u8]) -> QueryResult<Option<NewestCommit>> {
        commits::table
            .filter(commits::group_id.eq(group_id))
            .order(commits::epoch.desc())
            .select((commits::epoch, commits::proof_digest, commits::at))
            .first(conn)
            .optional()
    }

    pub(super) fn commit_digest(conn, group_id: &[u8], epoch: i64) -> QueryResult<Option<Vec<u8>>> {
        commits::table.find((group_id, epoch)).select(commits::digest).first(conn).optional()
    }

    /// Returns whether the Commit is the first of its epoch. Waits for a concurrent Commit of the same epoch.
    pub(super) fn add_commit(conn, commit: &Commit, now: i64) -> QueryResult<bool> {
        diesel::insert_into(commits::table)
            .values((
                commits::group_id.eq(commit.post.group_id.as_slice()),
                commits::epoch.eq(commit.epoch),
                commits::digest.eq(commit.digest.as_slice()),
                commits::proof_digest.eq(commit.next_proof_digest.as_ref().map(<[u8; 32]>::as_slice)),
                commits::at.eq(now),
            ))
            .on_conflict_do_nothing()
            .execute(conn)
            .map(|rows| rows == 1)
    }

    /// Marks the Commit before this one as superseded, so that its retention can end.
    pub(super) fn supersede(conn, group_id: &[u8], epoch: i64) -> QueryResult<usize> {
        let older = diesel::alias!(commits as older);
        let before = older
            .filter(older.field(commits::group_id).eq(group_id).and(older.field(commits::epoch).lt(epoch)))
            .select(max(older.field(commits::epoch)));
        let before = commits::group_id.eq(group_id).and(commits::epoch.nullable().eq(before.single_value()));
        diesel::update(commits::table.filter(before)).set(commits::superseded.eq(true)).execute(conn)
    }
}

/// The most epochs that a Commit may skip after a restore. Clients keep the proofs of as many epochs.
const MOST_SKIPPED: i64 = 64;

/// The requirements for the next Commit of a group.
struct Due {
    /// The epoch after the newest Commit.
    next: i64,
    /// Whether the Commit may skip epochs that were lost in a restore.
    skips: bool,
    /// The SHA-256 of the required proof.
    asked: Option<Vec<u8>>,
}

/// A restore loses the Commits that came after the backup. So the first Commit after a restore may skip epochs. It must
/// show the proof that the newest known Commit requires, which proves that its sender was a member at the time of the
/// backup.
fn due(conn: &mut Conn<'_>, request: &Commit) -> QueryResult<Due> {
    let Some((newest, asked, at)) = newest_commit(conn, &request.post.group_id)? else {
        return Ok(Due { next: request.epoch, skips: false, asked: None });
    };
    let next = newest.saturating_add(1);
    let may_skip = request.epoch > next && request.epoch.saturating_sub(next) <= MOST_SKIPPED;
    let skips = may_skip && restore::fenced_at(conn)?.is_some_and(|fenced_at| at <= fenced_at);
    Ok(Due { next, skips, asked })
}

impl Due {
    /// Returns whether the Commit meets the requirements; otherwise the reason.
    fn admits(&self, conn: &mut Conn<'_>, request: &Commit) -> Result<bool, Failure<CommitError>> {
        if request.is_external {
            // A device that fell behind cannot know the proof.
            let group = (request.post.group_id.as_slice(), self.next);
            return match request.epoch == self.next {
                true if may_come_back(conn, group, request.post.by.device.0)? => Ok(true),
                true => Err(Failure::Refused(CommitError::NotListed)),
                false => Ok(false),
            };
        }
        let shows = self.asked.as_ref().is_none_or(|asked| request.proof_digest.is_some_and(|shown| shown == **asked));
        match (request.epoch == self.next, shows) {
            (true, false) => Err(Failure::Refused(CommitError::NotAMember)),
            // The answer names the epoch whose proof is required.
            (false, false) if self.skips => Err(Failure::Refused(CommitError::Stale(self.next))),
            (is_next, _) => Ok(is_next || self.skips),
        }
    }
}

/// Accepts a whole Commit or nothing. A Commit that was accepted before gets the same answer and changes nothing.
fn commit(conn: &mut Conn<'_>, request: &Commit, now: Timestamp) -> Result<Accepted, Failure<CommitError>> {
    hold_caller::<CommitError>(conn, &request.post.by)?;
    let (group_id, second) = (&request.post.group_id, now.as_second());
    let due = due(conn, request)?;
    if !due.admits(conn, request)? || !add_commit(conn, request, second)? {
        if commit_digest(conn, group_id, request.epoch)?.is_some_and(|known| known == request.digest) {
            let is_kept = request.info.is_some() && is_current(conn, (group_id, request.epoch.saturating_add(1)))?;
            let undelivered = missed_before(conn, request)?;
            let delivered = Delivered { undelivered, ..Delivered::default() };
            return Ok(Accepted { delivered, is_kept, ..Accepted::default() });
        }
        let newest = newest_commit(conn, group_id)?.map_or(due.next, |(newest, ..)| newest);
        return Err(Failure::Refused(CommitError::Stale(newest.saturating_add(1))));
    }
    supersede(conn, group_id, request.epoch)?;
    let is_kept = keep_info(conn, request, second)?;
    let spent = spend_all(conn, request, now)?;
    let of_last_resort =
        |(spend, spent): &(Spend, Spent)| (spent.state != State::Spent).then_some(spend.reservation.owner);
    let by_last_resort: HashSet<_> = spent.iter().filter_map(of_last_resort).collect();
    let joining: BTreeSet<_> = spent.iter().map(|(spend, _)| spend.reservation.owner).collect();
    // Last resorts of a removed device can still be spent, since no row holds their reservations. But no device would
    // read the Welcome.
    let owners: Vec<_> = joining.iter().copied().collect();
    let gone = devices::removed_among(conn, &owners)?;
    if let Some((spend, _)) = spent.iter().find(|(spend, _)| gone.contains(&spend.reservation.owner)) {
        return Err(Failure::Refused(CommitError::Reservation(spend.reservation, ReservationError::Lapsed)));
    }
    let (members, mut undelivered) = found(conn, &request.post)?;
    let commit = envelope(&request.post, MessageKind::Commit, second);
    let parts: &[Part] = if due.asked.is_some() { &[Part::Common, Part::Commits] } else { &[Part::Common] };
    let own = own_devices(conn, &request.post)?;
    let mut delivered = queue(conn, commit, &members, (&own, request.post.capacity), |_| parts)?;
    if let Some(welcome) = &request.welcome {
        let welcome = NewEnvelope { message: welcome, ..envelope(&request.post, MessageKind::Welcome, second) };
        delivered.to.extend(welcomed(conn, welcome, (&joining, &by_last_resort), &own, request)?);
    }
    undelivered.append(&mut delivered.undelivered);
    if !undelivered.is_empty() {
        let answer = serde_json::to_vec(&undelivered).map_err(StoreError::fatal)?;
        idempotency::begin_answer(conn, request.post.by.device.0, &missed_by(request), second)?;
        idempotency::keep_answer(conn, request.post.by.device.0, &request.digest, &answer)?;
    }
    Ok(Accepted { delivered: Delivered { undelivered, ..delivered }, spent, is_kept })
}

/// Spends the reservations of a Commit.
fn spend_all(
    conn: &mut Conn<'_>,
    request: &Commit,
    now: Timestamp,
) -> Result<Vec<(Spend, Spent)>, Failure<CommitError>> {
    // Sorted, so that two Commits that spend the same reservations cannot deadlock.
    let mut reservations = request.reservations.clone();
    reservations.sort_unstable_by_key(|(one, _)| (one.owner, one.nonce));
    reservations.dedup_by_key(|(one, _)| *one);
    let mut all = Vec::with_capacity(reservations.len());
    for (reservation, bind) in reservations {
        let spend = Spend {
            reservation,
            by: request.post.by,
            group_id: request.post.group_id.clone(),
            bind,
            proof: if bind.is_some() { Proof::Receipt } else { Proof::None },
        };
        let outcome = spend_first(conn, &spend, now)?;
        let outcome = outcome.map_err(|error| Failure::Refused(CommitError::Reservation(reservation, error)))?;
        all.push((spend, outcome));
    }
    Ok(all)
}

/// Keeps the GroupInfo that the Commit brings. If it brings none, forgets the one of the epoch before. Returns whether one
/// is kept.
fn keep_info(conn: &mut Conn<'_>, request: &Commit, now: i64) -> Result<bool, StoreError> {
    let group_id = &request.post.group_id;
    match &request.info {
        Some(info) => {
            let group = (group_id.as_slice(), request.epoch.saturating_add(1));
            group_infos::keep(conn, group, request.post.by_user.as_str(), info, now)
        }
        None => group_infos::forget(conn, group_id).map(|()| false).map_err(StoreError::from),
    }
}

/// Queues a Welcome. A device without it cannot follow the group, so one full queue refuses the whole Commit. The
/// capacity that is set aside for Welcomes costs the recipient a KeyPackage for each use. A last resort costs nothing,
/// so its Welcome may use only the common part.
fn welcomed(
    conn: &mut Conn<'_>,
    welcome: NewEnvelope<'_>,
    (joining, by_last_resort): (&BTreeSet<i64>, &HashSet<i64>),
    own: &HashSet<i64>,
    request: &Commit,
) -> Result<Vec<DeviceId>, Failure<CommitError>> {
    let parts = |device: i64| -> &'static [Part] {
        if by_last_resort.contains(&device) { &[Part::Common] } else { &[Part::Welcomes, Part::Common] }
    };
    let Delivered { to, undelivered } = queue(conn, welcome, joining, (own, request.post.capacity), parts)?;
    let reached: HashSet<_> = to.iter().map(|device| device.0).collect();
    let missed = request.reservations.iter().find(|(reservation, _)| !reached.contains(&reservation.owner));
    match (missed, undelivered.into_iter().next()) {
        (Some((reservation, _)), Some(Undelivered { user, device, .. })) => {
            Err(Failure::Refused(CommitError::QueueFull(*reservation, DeviceOf { user, device })))
        }
        _ => Ok(to),
    }
}

/// The key under which the devices that a Commit was not queued for are kept. These devices cannot follow the group,
/// and a sender who lost the answer must learn of them. Deleted at the same time as the queued messages.
fn missed_by(request: &Commit) -> IdempotencyKey {
    IdempotencyKey { key: request.digest, request: request.digest, until: request.post.expires_at }
}

fn missed_before(conn: &mut Conn<'_>, request: &Commit) -> Result<Vec<Undelivered>, StoreError> {
    let kept = idempotency::answer_of(conn, request.post.by.device.0, &request.digest).optional()?;
    kept.map_or(Ok(Vec::new()), |(_, answer)| serde_json::from_slice(&answer).map_err(StoreError::fatal))
}

impl Store {
    /// Accepts a Commit, spends its reservations, and queues it with its Welcome: all of it or nothing.
    ///
    /// # Errors
    /// See [`CommitError`]. Nothing has changed then.
    pub fn commit(&self, request: &Commit, now: Timestamp) -> Result<Accepted, Failure<CommitError>> {
        self.write("commit", |conn| commit(conn, request, now))
    }
}
