//! Delivery: one Commit an epoch, and a queue for each device.

use std::{sync::Arc, time::Duration};

use keypool_openapi::{
    AckRequest, AckResponse, CommitRequest, CommitResponse, DeviceOf, GroupId, MAX_MESSAGE_SIZE, MessageRequest,
    MessageResponse, MessagesPage, MessagesQuery, ProblemType,
};
use keypool_validation::mls_message::{Header, header};
use sha2::{Digest, Sha256};

use super::{Pool, after, reservations::lost_reservation};
use crate::{
    answers::{Room, no_room},
    auth::{Caller, unknown_token},
    connections::End,
    fetches::{Call, Fetch},
    problem::{About, Failure},
    store::{CallerError, Commit, CommitError, Delivered, MESSAGE_UNIT, Post, Queued},
};

/// The longest that a request may wait for a message.
const MAX_WAIT: u32 = 60;

/// The most messages that are fetched at once, and as many as are where the request does not say.
const MAX_PAGE: u32 = 1_000;
const PAGE: u32 = 100;

/// What a fetch is answered.
pub(crate) struct Fetched {
    pub page: MessagesPage,
    /// Room for it, where it is not small.
    pub room: Option<Room>,
    /// To be kept until it is sent.
    pub fetch: Fetch,
    /// Whether it was to wait, and too many do already.
    pub is_turned_away: bool,
}

impl Fetched {
    /// The answer to a displaced fetch is an empty page: the newer fetch gets the messages.
    fn new(mut page: MessagesPage, mut room: Option<Room>, fetch: Fetch) -> Self {
        if !fetch.sends() {
            (page.messages, room) = (Vec::new(), None);
        }
        Self { page, room, fetch, is_turned_away: false }
    }
}

impl Pool {
    /// Takes a Commit, with all that it brings, or nothing of it.
    pub async fn commit(
        &self,
        caller: Caller,
        group_id: GroupId,
        request: CommitRequest,
    ) -> Result<CommitResponse, Failure> {
        let epoch = commit_epoch(&request, &group_id)?;
        let next_proof_digest = request.next_proof_digest.as_ref().map(|digest| sha256(&digest.0)).transpose()?;
        request.proof.as_ref().map(|proof| sha256(&proof.0)).transpose()?;
        let bytes = request.commit.0.len() + request.welcome.as_ref().map_or(0, |welcome| welcome.0.len());
        self.limits.request(&caller.device.user, bytes / MESSAGE_UNIT)?;
        self.block(move |pool, now| {
            let expires_at = after(now.as_second(), pool.policy.message_retention)?;
            let want = Commit {
                epoch,
                digest: Sha256::digest(&request.commit.0).into(),
                welcome: request.welcome.map(|welcome| welcome.0),
                reservations: request.reservations,
                proof_digest: request.proof.map(|proof| Sha256::digest(&proof.0).into()),
                next_proof_digest,
                post: Post {
                    by: caller.shown_token(),
                    by_user: caller.device.user.clone(),
                    group_id: group_id.as_bytes().to_vec(),
                    message: request.commit.0,
                    recipients: request.recipients,
                    expires_at,
                    capacity: pool.policy.queue_capacity,
                },
            };
            match pool.store.commit(&want, now) {
                Ok(Delivered { to, undelivered }) => {
                    pool.limits.spent(&caller.device.user, want.reservations.len());
                    pool.fetches.ring(&to);
                    Ok(CommitResponse { epoch: epoch.cast_unsigned() + 1, undelivered })
                }
                Err(error) => Err(not_accepted(error, &group_id, epoch)),
            }
        })
        .await
    }

    /// Queues a message for members of a group.
    pub async fn post(
        &self,
        caller: Caller,
        group_id: GroupId,
        request: MessageRequest,
    ) -> Result<MessageResponse, Failure> {
        match header(&request.message.0) {
            Some(Header::OfGroup { group_id: of, is_commit: false, .. }) if of == group_id.as_bytes() => {}
            Some(Header::OfGroup { is_commit: true, .. }) => {
                return Err(malformed(format!("The message is a Commit. Send it to POST /groups/{group_id}/commits.")));
            }
            found => return Err(wrong_message("message", found, &group_id)),
        }
        sized("message", &request.message.0)?;
        self.limits.request(&caller.device.user, request.message.0.len() / MESSAGE_UNIT)?;
        self.block(move |pool, now| {
            let want = Post {
                by: caller.shown_token(),
                by_user: caller.device.user.clone(),
                group_id: group_id.as_bytes().to_vec(),
                message: request.message.0,
                recipients: request.recipients,
                expires_at: after(now.as_second(), pool.policy.message_retention)?,
                capacity: pool.policy.queue_capacity,
            };
            let Some(Delivered { to, undelivered }) = pool.store.post(&want, now)? else {
                return Err(Failure::new(
                    ProblemType::UnknownGroup,
                    format!("The group {group_id} is unknown: this server has received no Commit of it. Send a Commit first."),
                ));
            };
            pool.fetches.ring(&to);
            Ok(MessageResponse { undelivered })
        })
        .await
    }

    /// What waits for the caller. Where there is nothing, waits for it. `end` ends the connection that asks.
    pub(crate) async fn messages(
        &self,
        caller: Caller,
        query: MessagesQuery,
        end: Option<Arc<End>>,
    ) -> Result<Fetched, Failure> {
        let (wait, limit) = (query.wait.unwrap_or(0), query.limit.unwrap_or(PAGE));
        if wait > MAX_WAIT || !(1..=MAX_PAGE).contains(&limit) {
            return Err(malformed(format!(
                "`wait` must be at most {MAX_WAIT} seconds and `limit` 1 to {MAX_PAGE}; got {wait} and {limit}."
            )));
        }
        let (fetch, end) =
            (self.fetches.begin(caller.device.id, end), tokio::time::sleep(Duration::from_secs(wait.into())));
        let call = fetch.call();
        // Where too many wait already, this one is answered at once.
        let place = if wait > 0 { self.fetches.place() } else { None };
        tokio::pin!(end);
        loop {
            // Asked for before the queue is looked at: what comes in between rings, too.
            let rung = call.news().notified();
            let (Queued { messages, devices_version, .. }, room) = self.look_at_queue(&caller, limit, &call).await?;
            let has_news = !messages.is_empty() || query.devices_version.is_some_and(|known| known != devices_version);
            let page = MessagesPage { messages, devices_version };
            if has_news || place.is_none() || self.fetches.is_closed() || call.is_displaced() {
                let is_turned_away = wait > 0 && place.is_none();
                return Ok(Fetched { is_turned_away, ..Fetched::new(page, room, fetch) });
            }
            tokio::select! {
                () = rung => {}
                () = &mut end => return Ok(Fetched::new(page, room, fetch)),
            }
            if call.is_displaced() {
                return Ok(Fetched::new(page, None, fetch));
            }
        }
    }

    /// What is in the caller's queue now, and room for it. For a call that was displaced, nothing is read.
    async fn look_at_queue(
        &self,
        caller: &Caller,
        limit: u32,
        call: &Arc<Call>,
    ) -> Result<(Queued, Option<Room>), Failure> {
        let mut held = None;
        loop {
            let (shown, its) = (caller.shown_token(), Arc::clone(call));
            let has_tried = held.is_some();
            let looked = self.block(move |pool, _| {
                let mut room = None;
                let queued = pool.store.queued(&shown, limit, &mut |bytes| {
                    // As much as there is room for; the first message has what was waited for.
                    let is_held = held.as_ref().is_some_and(|(held, _)| bytes <= *held);
                    room = pool.answers.for_messages(bytes).or_else(|| held.take_if(|_| is_held).map(|(_, room)| room));
                    !its.is_displaced() && room.is_some()
                })?;
                Ok::<_, CallerError>((queued, room))
            });
            let (queued, room) = looked.await?;
            let Some(bytes) = queued.lacks_room.filter(|_| !call.is_displaced()) else { return Ok((queued, room)) };
            let room =
                if has_tried { None } else { self.answers.wait_for_messages(bytes, || !call.is_displaced()).await };
            held = match room {
                Some(room) => Some((bytes, room)),
                None if call.is_displaced() => return Ok((queued, None)),
                None => {
                    self.store.metrics().shed();
                    return Err(no_room());
                }
            };
        }
    }

    /// Takes what the caller has dealt with out of its queue.
    pub async fn acknowledge(&self, caller: Caller, request: AckRequest) -> Result<AckResponse, Failure> {
        self.block(move |pool, now| {
            let expires_at = after(now.as_second(), pool.policy.message_retention)?;
            let signed = |ids: Vec<u64>| ids.into_iter().map(u64::cast_signed).collect::<Vec<_>>();
            let (ids, unreadable) = (signed(request.ids), signed(request.unreadable));
            let (acknowledged, told) =
                pool.store.acknowledge(&caller.shown_token(), (&ids, &unreadable), now, expires_at)?;
            pool.fetches.ring(&told);
            Ok::<_, Failure>(AckResponse { acknowledged: acknowledged as u64 })
        })
        .await
    }
}

/// The epoch of a Commit, where all of the request is what it should be.
fn commit_epoch(request: &CommitRequest, group_id: &GroupId) -> Result<i64, Failure> {
    sized("commit", &request.commit.0)?;
    let epoch = match header(&request.commit.0) {
        Some(Header::OfGroup { group_id: of, epoch, is_commit: true }) if of == group_id.as_bytes() => epoch,
        found => return Err(wrong_message("commit", found, group_id)),
    };
    match &request.welcome {
        None if !request.reservations.is_empty() => {
            return Err(malformed("The Commit adds devices, and there is no `welcome` for them."));
        }
        Some(_) if request.reservations.is_empty() => {
            return Err(malformed("There is a `welcome`, and no `reservations` that say whom it is for."));
        }
        Some(welcome) => {
            sized("welcome", &welcome.0)?;
            if header(&welcome.0) != Some(Header::Welcome) {
                return Err(malformed("The `welcome` is not exactly one MLSMessage with a Welcome."));
            }
        }
        None => {}
    }
    // One less than the last: the epoch after it has to be one, too.
    i64::try_from(epoch)
        .ok()
        .filter(|epoch| *epoch < i64::MAX)
        .ok_or_else(|| malformed(format!("`epoch` {epoch} is too large. Create a new group.")))
}

/// 32 bytes.
fn sha256(bytes: &[u8]) -> Result<[u8; 32], Failure> {
    let length = bytes.len();
    bytes
        .try_into()
        .map_err(|_| malformed(format!("`proof` and `next_proof_digest` must have 32 bytes; got {length}.")))
}

fn malformed(detail: impl Into<String>) -> Failure {
    Failure::new(ProblemType::MalformedRequest, detail)
}

fn sized(name: &str, bytes: &[u8]) -> Result<(), Failure> {
    if bytes.len() <= MAX_MESSAGE_SIZE {
        return Ok(());
    }
    Err(Failure::new(
        ProblemType::PayloadTooLarge,
        format!("`{name}` must have at most {MAX_MESSAGE_SIZE} bytes; got {}.", bytes.len()),
    ))
}

fn wrong_message(name: &str, found: Option<Header>, group_id: &GroupId) -> Failure {
    malformed(match found {
        None => format!("The `{name}` is not exactly one MLSMessage (RFC 9420, section 6)."),
        Some(Header::OfGroup { group_id: other, .. }) if other != group_id.as_bytes() => {
            format!("The `{name}` is of another group than {group_id}, the group in the path.")
        }
        Some(Header::OfGroup { .. }) => {
            format!("The `{name}` is not a Commit. Send it to POST /groups/{group_id}/messages.")
        }
        Some(_) => {
            format!("The `{name}` must be a PrivateMessage or a PublicMessage.")
        }
    })
}

fn not_accepted(error: CommitError, group_id: &GroupId, made_in: i64) -> Failure {
    match error {
        CommitError::Store(error) => error.into(),
        CommitError::TokenRevoked => unknown_token(),
        CommitError::Stale(epoch) => {
            let next = if epoch < made_in {
                "Commits before it have not come here, or were lost when the server was restored: then show the `proof` of the \
                 epoch that the group is in here, and skip 64 epochs at most."
            } else {
                "Fetch the Commits that came before it, and make it anew."
            };
            let detail = format!(
                "The group {group_id} is in epoch {epoch}, and the Commit was made in epoch {made_in}. {next} Nothing was \
                 spent or delivered."
            );
            Failure { about: About::Epoch(epoch.cast_unsigned()), ..Failure::new(ProblemType::StaleEpoch, detail) }
        }
        CommitError::NotAMember => Failure::new(
            ProblemType::Forbidden,
            format!(
                "The Commit before asked for a `proof` that only members of the group {group_id} can know, and this one \
                 does not show it. Nothing was spent or delivered."
            ),
        ),
        CommitError::QueueFull(id, DeviceOf { user, device }) => Failure {
            about: About::Reservation(id),
            ..Failure::new(
                ProblemType::QueueFull,
                format!(
                    "The queue of {user}/{device} does not take the Welcome: the device has not fetched what this user sent it \
                     before. Leave the device out, or try again later. Nothing was spent or delivered, and the epoch is still \
                     free."
                ),
            )
        },
        CommitError::Reservation(id, error) => {
            let failure = lost_reservation(error, &id);
            Failure {
                about: About::Reservation(id),
                detail: format!("{} Nothing was spent or delivered, and the epoch is still free.", failure.detail),
                ..failure
            }
        }
    }
}
