//! The commit fence: one Commit an epoch, with all that it spends and brings.

use std::collections::{BTreeSet, HashSet};

use diesel::{dsl::max, prelude::*};
use jiff::Timestamp;
use keypool_openapi::{DeviceOf, MessageKind, ReservationId, State, Undelivered};

use super::{
    Store, StoreError,
    audit::AuditSql,
    connection::{Retry, with_conn},
    delivery::{Announce, Delivered, DeliverySql, NewEnvelope, Post, envelope, found, own_devices, queue},
    devices::DeviceSql,
    idempotency::{IdempotencyKey, IdempotencySql},
    key_packages::HoldDevice,
    lineage::LineageSql,
    queue_shares::{Part, QueueShareSql},
    rows::{DeviceId, statements},
    schema::commits,
    spending::{Spend, SpendError, SpendingSql, spend_first},
    tokens::{TokenRevoked, hold_caller},
};

/// A Commit, with what it spends and what it brings to whom.
#[derive(Clone, Debug)]
pub struct Commit {
    /// The Commit itself, and whom it goes to.
    pub post: Post,
    /// The epoch that it was made in.
    pub epoch: i64,
    /// Its SHA-256.
    pub digest: [u8; 32],
    /// The Welcome, for the owners of the reservations.
    pub welcome: Option<Vec<u8>>,
    /// What it spends.
    pub reservations: Vec<ReservationId>,
    /// The SHA-256 of what it shows for being a member's.
    pub proof_digest: Option<[u8; 32]>,
    /// The SHA-256 of what the next one has to show.
    pub next_proof_digest: Option<[u8; 32]>,
}

/// Why a Commit was not accepted. Nothing has changed then.
#[derive(Debug)]
pub enum CommitError {
    /// The caller's token has ended.
    TokenRevoked,
    /// The group is in this epoch, and not in the Commit's.
    Stale(i64),
    /// It does not show what the Commit before asked for.
    NotAMember,
    /// The queue of the reservation's owner does not take the Welcome.
    QueueFull(ReservationId, DeviceOf),
    /// A reservation cannot be spent.
    Reservation(ReservationId, SpendError),
    /// The database failed.
    Store(StoreError),
}

impl From<StoreError> for CommitError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<TokenRevoked> for CommitError {
    fn from(TokenRevoked: TokenRevoked) -> Self {
        Self::TokenRevoked
    }
}

impl From<diesel::result::Error> for CommitError {
    fn from(error: diesel::result::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Retry for CommitError {
    fn store_error(&self) -> Option<&StoreError> {
        if let Self::Store(error) = self { Some(error) } else { None }
    }
}

/// Its epoch, what the next one has to show, and when it came.
type NewestCommit = (i64, Option<Vec<u8>>, i64);

statements! {
    pub(super) trait CommitSql {
        fn newest_commit(conn, group_id: &[u8]) -> QueryResult<Option<NewestCommit>> {
            commits::table
                .filter(commits::group_id.eq(group_id))
                .order(commits::epoch.desc())
                .select((commits::epoch, commits::proof_digest, commits::at))
                .first(conn)
                .optional()
        }

        fn commit_digest(conn, group_id: &[u8], epoch: i64) -> QueryResult<Option<Vec<u8>>> {
            commits::table.find((group_id, epoch)).select(commits::digest).first(conn).optional()
        }

        /// Whether it is the first of its epoch. One that runs at the same time is waited for.
        fn add_commit(conn, commit: &Commit, now: i64) -> QueryResult<bool> {
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

        /// Marks the Commit before this one, which need not be kept for ever any longer.
        fn supersede(conn, group_id: &[u8], epoch: i64) -> QueryResult<usize> {
            let older = diesel::alias!(commits as older);
            let before = older
                .filter(older.field(commits::group_id).eq(group_id).and(older.field(commits::epoch).lt(epoch)))
                .select(max(older.field(commits::epoch)));
            let before = commits::group_id.eq(group_id).and(commits::epoch.nullable().eq(before.single_value()));
            diesel::update(commits::table.filter(before)).set(commits::superseded.eq(true)).execute(conn)
        }
    }
}

/// How many epochs a Commit skips at most, after a restore. Clients keep the proofs of as many.
const MOST_SKIPPED: i64 = 64;

/// What the next Commit of a group has to be.
struct Due {
    /// The epoch that follows the newest Commit.
    next: i64,
    /// Whether the Commit skips some that were lost with a restore.
    skips: bool,
    /// The SHA-256 of what it has to show.
    asked: Option<Vec<u8>>,
}

/// Commits that came after a backup are lost with a restore. So the first one after it may skip epochs, and shows what the
/// newest one that is known asks for: its sender was a member at the time of the backup.
fn due<C: CommitSql + LineageSql>(conn: &mut C, want: &Commit) -> QueryResult<Due> {
    let Some((newest, asked, at)) = conn.newest_commit(&want.post.group_id)? else {
        return Ok(Due { next: want.epoch, skips: false, asked: None });
    };
    let next = newest.saturating_add(1);
    let may_skip = want.epoch > next && want.epoch.saturating_sub(next) <= MOST_SKIPPED;
    let skips = may_skip && conn.fenced_at()?.is_some_and(|fenced_at| at <= fenced_at);
    Ok(Due { next, skips, asked })
}

impl Due {
    /// Whether a Commit is what is due; otherwise why not.
    fn admits(&self, want: &Commit) -> Result<bool, CommitError> {
        let shows = self.asked.as_ref().is_none_or(|asked| want.proof_digest.is_some_and(|shown| shown == **asked));
        match (want.epoch == self.next, shows) {
            (true, false) => Err(CommitError::NotAMember),
            // The answer names the epoch whose proof is asked for.
            (false, false) if self.skips => Err(CommitError::Stale(self.next)),
            (is_next, _) => Ok(is_next || self.skips),
        }
    }
}

/// Everything of a Commit, or nothing. A Commit that was accepted before is answered the same, and changes nothing.
fn commit<C>(conn: &mut C, want: &Commit, now: Timestamp) -> Result<Delivered, CommitError>
where
    C: CommitSql
        + DeliverySql
        + QueueShareSql
        + DeviceSql
        + SpendingSql
        + AuditSql
        + LineageSql
        + IdempotencySql
        + HoldDevice
        + Announce,
{
    hold_caller::<_, CommitError>(conn, &want.post.by)?;
    let (group_id, second) = (&want.post.group_id, now.as_second());
    let due = due(conn, want)?;
    if !due.admits(want)? || !conn.add_commit(want, second)? {
        if conn.commit_digest(group_id, want.epoch)?.is_some_and(|known| known == want.digest) {
            return Ok(Delivered { undelivered: missed_before(conn, want)?, ..Delivered::default() });
        }
        let newest = conn.newest_commit(group_id)?.map_or(due.next, |(newest, ..)| newest);
        return Err(CommitError::Stale(newest.saturating_add(1)));
    }
    conn.supersede(group_id, want.epoch)?;
    // In a fixed order, so that two Commits that spend the same reservations cannot deadlock.
    let mut reservations = want.reservations.clone();
    reservations.sort_unstable_by_key(|one| (one.owner, one.nonce));
    reservations.dedup();
    let mut by_last_resort = HashSet::new();
    for reservation in &reservations {
        let one = Spend { reservation: *reservation, by: want.post.by, group_id: group_id.clone() };
        let spent = spend_first(conn, &one, now)?.map_err(|error| CommitError::Reservation(*reservation, error))?;
        if spent.state != State::Spent {
            by_last_resort.insert(reservation.owner);
        }
    }
    let joining: BTreeSet<_> = reservations.iter().map(|reservation| reservation.owner).collect();
    // A last resort is never held, so that one of a device that was removed can be spent; but nobody would read the Welcome.
    let owners: Vec<_> = joining.iter().copied().collect();
    let gone = conn.removed_among(&owners)?;
    if let Some(reservation) = reservations.iter().find(|reservation| gone.contains(&reservation.owner)) {
        return Err(CommitError::Reservation(*reservation, SpendError::Lapsed));
    }
    let (members, mut undelivered) = found(conn, &want.post)?;
    let commit = envelope(&want.post, MessageKind::Commit, second);
    let parts: &[Part] = if due.asked.is_some() { &[Part::Common, Part::Commits] } else { &[Part::Common] };
    let own = own_devices(conn, &want.post)?;
    let mut delivered = queue(conn, commit, &members, (&own, want.post.capacity), |_| parts)?;
    if let Some(welcome) = &want.welcome {
        let welcome = NewEnvelope { message: welcome, ..envelope(&want.post, MessageKind::Welcome, second) };
        delivered.to.extend(welcomed(conn, welcome, (&joining, &by_last_resort), &own, want)?);
    }
    undelivered.append(&mut delivered.undelivered);
    if !undelivered.is_empty() {
        let answer = serde_json::to_vec(&undelivered).map_err(StoreError::fatal)?;
        conn.begin_answer(want.post.by.device.0, &missed_by(want), second)?;
        conn.keep_answer(want.post.by.device.0, &want.digest, &answer)?;
    }
    Ok(Delivered { undelivered, ..delivered })
}

/// Queues a Welcome. A device without it could not follow the group, so one full queue refuses the whole Commit. What is set
/// aside for Welcomes costs a KeyPackage of the device each time; a last resort costs nothing, and has the common part alone.
fn welcomed<C: DeliverySql + QueueShareSql + DeviceSql + Announce>(
    conn: &mut C,
    welcome: NewEnvelope<'_>,
    (joining, by_last_resort): (&BTreeSet<i64>, &HashSet<i64>),
    own: &HashSet<i64>,
    want: &Commit,
) -> Result<Vec<DeviceId>, CommitError> {
    let parts = |device: i64| -> &'static [Part] {
        if by_last_resort.contains(&device) { &[Part::Common] } else { &[Part::Welcomes, Part::Common] }
    };
    let Delivered { to, undelivered } = queue(conn, welcome, joining, (own, want.post.capacity), parts)?;
    let reached: HashSet<_> = to.iter().map(|device| device.0).collect();
    let missed = want.reservations.iter().find(|reservation| !reached.contains(&reservation.owner));
    match (missed, undelivered.into_iter().next()) {
        (Some(reservation), Some(Undelivered { user, device, .. })) => {
            Err(CommitError::QueueFull(*reservation, DeviceOf { user, device }))
        }
        _ => Ok(to),
    }
}

/// Where it is kept whom a Commit was not queued for: those devices cannot follow the group, and a sender who lost the answer
/// has to hear of them. It is forgotten when what was queued is.
fn missed_by(want: &Commit) -> IdempotencyKey {
    IdempotencyKey { key: want.digest, request: want.digest, until: want.post.expires_at }
}

fn missed_before<C: IdempotencySql>(conn: &mut C, want: &Commit) -> Result<Vec<Undelivered>, StoreError> {
    let kept = conn.answer_of(want.post.by.device.0, &want.digest).optional()?;
    kept.map_or(Ok(Vec::new()), |(_, answer)| serde_json::from_slice(&answer).map_err(StoreError::fatal))
}

impl Store {
    /// Accepts a Commit, spends what it uses, and queues it with its Welcome: all of it, or nothing.
    ///
    /// # Errors
    /// See [`CommitError`]. Nothing has changed then.
    pub fn commit(&self, want: &Commit, now: Timestamp) -> Result<Delivered, CommitError> {
        with_conn!(self, write "commit", |conn| commit(conn, want, now))
    }
}
