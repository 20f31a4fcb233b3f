//! Messages: posts to devices' queues, fetches from them, and acknowledges.

use std::{sync::Arc, time::Duration};

use keypool_openapi::{
    AckRequest, AckResponse, GroupId, MessageRequest, MessageResponse, MessagesPage, MessagesQuery, ProblemType,
    RefusalReason,
};
use keypool_validation::mls_message::{Header, header};

use super::{
    Service,
    mls_messages::{malformed, representable, sized, unknown_group, wrong_message},
    times::after,
};
use crate::{
    answers::{Room, no_room},
    caller::Caller,
    connections::End,
    fetches::{Call, Fetch},
    problem::{About, Failure, unknown_token},
    store::{self, Delivered, MESSAGE_UNIT, Post, PostError, Queued, TokenRevoked},
};

/// The longest that a request may wait for a message, in seconds.
const MAX_WAIT: u32 = 60;

/// The most messages in one answer, and the default number.
const MAX_PAGE: u32 = 1_000;
const PAGE: u32 = 100;

/// The answer to a fetch.
pub(crate) struct Fetched {
    pub page: MessagesPage,
    /// Memory permit for the answer, unless it is small.
    pub room: Option<Room>,
    /// The fetch, kept until the answer is sent.
    pub fetch: Fetch,
    /// Whether the fetch asked to wait, but too many fetches wait already.
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

impl Service {
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
        let expected_epoch = request.expected_epoch.map(representable).transpose()?;
        self.limits.request(&caller.device.user, request.message.0.len() / MESSAGE_UNIT)?;
        self.block(move |service, now| {
            let want = Post {
                by: caller.shown_token(),
                by_user: caller.device.user.clone(),
                group_id: group_id.as_bytes().to_vec(),
                message: request.message.0,
                recipients: request.recipients,
                expires_at: after(now.as_second(), service.policy.message_retention)?,
                capacity: service.policy.queue_capacity,
            };
            let Delivered { to, undelivered } =
                service.store.post(&want, expected_epoch, now).map_err(|error| not_queued(error, &group_id))?;
            service.fetches.ring(&to);
            Ok::<_, Failure>(MessageResponse { undelivered })
        })
        .await
    }

    /// Returns the messages that wait for the caller. If there are none, waits for one. `end` closes the connection of
    /// the request.
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
        if let Some(known) = query.devices_version.filter(|known| i64::try_from(*known).is_err()) {
            return Err(malformed(format!("`devices_version` must be one of an earlier answer; got {known}.")));
        }
        let (fetch, end) =
            (self.fetches.begin(caller.device.id, end), tokio::time::sleep(Duration::from_secs(wait.into())));
        let call = fetch.call();
        // If too many fetches wait already, this one is answered at once.
        let place = if wait > 0 { self.fetches.place() } else { None };
        tokio::pin!(end);
        loop {
            // Created before the queue is read, so that a message that arrives in between wakes the fetch.
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

    /// Reads the caller's queue, and gets a memory permit for the messages. Reads nothing if the fetch was displaced.
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
            let looked = self.block(move |service, _| {
                let mut room = None;
                let queued = service.store.queued(&shown, limit, &mut |bytes| {
                    // Returns as many messages as the memory permits. The first message gets the permit that was waited
                    // for.
                    let is_held = held.as_ref().is_some_and(|(held, _)| bytes <= *held);
                    room =
                        service.answers.for_messages(bytes).or_else(|| held.take_if(|_| is_held).map(|(_, room)| room));
                    !its.is_displaced() && room.is_some()
                })?;
                Ok::<_, store::Failure<TokenRevoked>>((queued, room))
            });
            let (queued, room) = looked.await?;
            let Some(bytes) = queued.lacks_room.filter(|_| !call.is_displaced()) else { return Ok((queued, room)) };
            let room =
                if has_tried { None } else { self.answers.wait_for_messages(bytes, || !call.is_displaced()).await };
            held = match room {
                Some(room) => Some((bytes, room)),
                None if call.is_displaced() => return Ok((queued, None)),
                None => {
                    self.work.metrics().shed();
                    return Err(no_room());
                }
            };
        }
    }

    /// Removes acknowledged messages from the caller's queue.
    pub async fn acknowledge(&self, caller: Caller, request: AckRequest) -> Result<AckResponse, Failure> {
        self.block(move |service, now| {
            let expires_at = after(now.as_second(), service.policy.message_retention)?;
            let ids: Vec<_> = request.ids.into_iter().map(u64::cast_signed).collect();
            let gone = request.unreadable.into_iter().map(|id| (id.cast_signed(), RefusalReason::KeysGone));
            let refused = request.refused.into_iter().map(|one| (one.id.cast_signed(), one.reason));
            let refused = gone.chain(refused).collect();
            let (acknowledged, told) = service.store.acknowledge(
                &caller.shown_token(),
                (&ids, &refused),
                (now, expires_at),
                service.policy.queue_capacity,
            )?;
            service.fetches.ring(&told);
            Ok::<_, Failure>(AckResponse { acknowledged: acknowledged as u64 })
        })
        .await
    }
}

fn not_queued(error: store::Failure<PostError>, group_id: &GroupId) -> Failure {
    match error {
        store::Failure::Store(error) => error.into(),
        store::Failure::Refused(PostError::TokenRevoked) => unknown_token(),
        store::Failure::Refused(PostError::UnknownGroup) => unknown_group(group_id),
        store::Failure::Refused(PostError::Stale(epoch)) => Failure {
            about: About::Epoch(epoch.cast_unsigned()),
            ..Failure::new(
                ProblemType::StaleEpoch,
                format!(
                    "The group {group_id} is in epoch {epoch}, not in `expected_epoch`. Fetch the Commits that came since, and \
                     encrypt the message anew. Nothing was delivered."
                ),
            )
        },
    }
}
