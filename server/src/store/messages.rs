//! Messages: fetches and acknowledges the contents of each device's queue.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use diesel::prelude::*;
use jiff::Timestamp;
use keypool_openapi::{Base64Bytes, MessageKind, QueuedMessage, Refusal, RefusalReason};

use super::{
    ANSWER_BYTES, commits,
    database::{
        Conn, Failure, Store, StoreError,
        rows::{DeviceId, Names, timestamp},
        schema::{deliveries, envelopes},
        sql::statements,
    },
    devices,
    queues::{Delivered, NewEnvelope, Part, Post, envelope, found, own_devices, put, queue},
    signature_keys,
    tokens::{self, ShownToken, TokenRevoked, hold_caller, valid},
};

#[diesel::declare_sql_function]
extern "SQL" {
    /// Length of a binary in bytes.
    fn length(bytes: diesel::sql_types::Binary) -> diesel::sql_types::Integer;
}

/// The messages that wait for a device.
#[derive(Clone, Debug)]
pub struct Queued {
    /// The messages, oldest first.
    pub messages: Vec<QueuedMessage>,
    /// A number that changes whenever the user's devices change.
    pub devices_version: u64,
    /// The size of the first message in bytes, if the answer had no room even for that one.
    pub lacks_room: Option<usize>,
}

type QueuedColumns = (i64, i64, String, Vec<u8>, Vec<u8>, i64);

/// Delivery, envelope, kind, sender, and group id.
type HeldColumns = (i64, i64, String, i64, Vec<u8>);

statements! {
    /// Returns the oldest deliveries, each with its size in bytes.
    pub(super) fn queue_sizes(conn, device: i64, limit: i64) -> QueryResult<Vec<(i64, i32)>> {
        deliveries::table
            .inner_join(envelopes::table)
            .filter(deliveries::device_id.eq(device))
            .order(deliveries::id.asc())
            .limit(limit)
            .select((deliveries::id, length(envelopes::message)))
            .load(conn)
    }

    /// Returns the deliveries up to this one if the token is still valid.
    fn queued_up_to(conn, caller: &ShownToken, last: i64) -> QueryResult<Vec<QueuedColumns>> {
        deliveries::table
            .inner_join(envelopes::table)
            .filter(deliveries::device_id.eq(caller.device.0).and(deliveries::id.le(last)))
            .filter(diesel::dsl::exists(valid(caller)))
            .order(deliveries::id.asc())
            .select((
                deliveries::id,
                envelopes::sender,
                envelopes::kind,
                envelopes::group_id,
                envelopes::message,
                envelopes::at,
            ))
            .load(conn)
    }

    pub(super) fn held(conn, device: i64, ids: &[i64]) -> QueryResult<Vec<HeldColumns>> {
        deliveries::table
            .inner_join(envelopes::table)
            .filter(deliveries::device_id.eq(device).and(deliveries::id.eq_any(ids)))
            .select((deliveries::id, envelopes::id, envelopes::kind, envelopes::sender, envelopes::group_id))
            .load(conn)
    }

    /// Removes deliveries if the token is still valid.
    pub(super) fn remove_deliveries(conn, caller: &ShownToken, ids: &[i64]) -> QueryResult<usize> {
        let held = deliveries::table.filter(deliveries::device_id.eq(caller.device.0).and(deliveries::id.eq_any(ids)));
        diesel::delete(held.filter(diesel::dsl::exists(valid(caller)))).execute(conn)
    }

    pub(super) fn still_delivered(conn, envelopes: &[i64]) -> QueryResult<Vec<i64>> {
        deliveries::table
            .filter(deliveries::envelope_id.eq_any(envelopes))
            .select(deliveries::envelope_id)
            .distinct()
            .load(conn)
    }

    pub(super) fn expired_envelopes(conn, now: i64, limit: i64) -> QueryResult<Vec<i64>> {
        envelopes::table
            .filter(envelopes::expires_at.le(now))
            .order(envelopes::expires_at.asc())
            .limit(limit)
            .select(envelopes::id)
            .load(conn)
    }

    pub(super) fn remove_envelopes(conn, ids: &[i64]) -> QueryResult<usize> {
        diesel::delete(deliveries::table.filter(deliveries::envelope_id.eq_any(ids))).execute(conn)?;
        diesel::delete(envelopes::table.filter(envelopes::id.eq_any(ids))).execute(conn)
    }
}

/// The reason why a message was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostError {
    /// The caller's token has been revoked.
    TokenRevoked,
    /// The server has received no Commit of the group.
    UnknownGroup,
    /// The group is in this epoch, which differs from the expected one.
    Stale(i64),
}

impl From<TokenRevoked> for PostError {
    fn from(TokenRevoked: TokenRevoked) -> Self {
        Self::TokenRevoked
    }
}

/// Queues a message, if the group is in the expected epoch.
fn post(
    conn: &mut Conn<'_>,
    request: &Post,
    expected_epoch: Option<i64>,
    now: Timestamp,
) -> Result<Delivered, Failure<PostError>> {
    hold_caller::<PostError>(conn, &request.by)?;
    let newest = commits::newest_commit(conn, &request.group_id)?;
    let (newest, ..) = newest.ok_or(Failure::Refused(PostError::UnknownGroup))?;
    let epoch = newest.saturating_add(1);
    if expected_epoch.is_some_and(|expected| expected != epoch) {
        return Err(Failure::Refused(PostError::Stale(epoch)));
    }
    let (members, mut undelivered) = found(conn, request)?;
    let message = envelope(request, MessageKind::Message, now.as_second());
    let own = own_devices(conn, request)?;
    let mut delivered = queue(conn, message, &members, (&own, request.capacity), |_| &[Part::Common])?;
    undelivered.append(&mut delivered.undelivered);
    Ok(Delivered { undelivered, ..delivered })
}

/// Returns the oldest messages of a device that fit into the answer, or `Err` with the size of the first if not even
/// that one fits.
fn queued(
    conn: &mut Conn<'_>,
    caller: &ShownToken,
    limit: u32,
    has_room: &mut dyn FnMut(usize) -> bool,
) -> Result<Result<Vec<QueuedMessage>, usize>, StoreError> {
    // Running total of bytes up to each delivery.
    let (mut page, mut bytes): (Vec<(i64, usize)>, _) = (Vec::new(), 0);
    for (id, size) in queue_sizes(conn, caller.device.0, i64::from(limit))? {
        bytes += usize::try_from(size).map_err(StoreError::fatal)?;
        // The first message is always returned, whatever its size.
        if !page.is_empty() && bytes > ANSWER_BYTES {
            break;
        }
        page.push((id, bytes));
    }
    let Some(&(_, first)) = page.first() else { return Ok(Ok(Vec::new())) };
    while page.last().is_some_and(|(_, bytes)| !has_room(*bytes)) {
        page.truncate(page.len() / 2);
    }
    let Some((last, _)) = page.pop() else { return Ok(Err(first)) };
    let rows = queued_up_to(conn, caller, last)?;
    let senders: Vec<_> = rows.iter().map(|row| row.1).collect();
    let names =
        Names::from_columns(if senders.is_empty() { Vec::new() } else { devices::devices_by_id(conn, &senders)? })?;
    let message = |(id, sender, kind, group_id, message, at): QueuedColumns| {
        let kind = kind.parse().map_err(StoreError::fatal)?;
        let (message, refusal) = match kind {
            MessageKind::Unreadable => (Vec::new(), Some(stored_refusal(&message)?)),
            _ => (message, None),
        };
        Ok(QueuedMessage {
            id: u64::try_from(id).map_err(StoreError::fatal)?,
            kind,
            group_id: Base64Bytes(group_id),
            from: names.of(sender)?,
            message: Base64Bytes(message),
            refusal,
            sent_at: timestamp(at)?,
        })
    };
    rows.into_iter().map(message).collect::<Result<_, StoreError>>().map(Ok)
}

/// Reads the refusal from the message of a notice. Notices of older versions are empty: the keys of a Welcome were gone.
fn stored_refusal(message: &[u8]) -> Result<Refusal, StoreError> {
    if message.is_empty() {
        return Ok(Refusal { about: MessageKind::Welcome, reason: RefusalReason::KeysGone });
    }
    serde_json::from_slice(message).map_err(StoreError::fatal)
}

/// Locks the envelopes of a device's deliveries until the transaction ends, in the order of their ids, so that two transactions
/// cannot deadlock. SQLite has one writer.
fn hold_envelopes(conn: &mut Conn<'_>, device: i64, ids: &[i64]) -> QueryResult<()> {
    let Conn::Postgres(conn) = conn else { return Ok(()) };
    let held = deliveries::table.filter(deliveries::device_id.eq(device).and(deliveries::id.eq_any(ids)));
    let brought = envelopes::table.filter(envelopes::id.eq_any(held.select(deliveries::envelope_id)));
    brought.order(envelopes::id.asc()).select(envelopes::id).for_no_key_update().load::<i64>(*conn).map(drop)
}

/// Removes messages from a device's queue. Notifies the senders of refused messages: of application messages, once for each
/// sender and group.
fn acknowledge(
    conn: &mut Conn<'_>,
    caller: &ShownToken,
    (ids, refused): (&[i64], &BTreeMap<i64, RefusalReason>),
    (now, expires_at, capacity): (i64, i64, u32),
) -> Result<(usize, Vec<DeviceId>), Failure<TokenRevoked>> {
    let device = caller.device;
    let all: Vec<_> = ids.iter().chain(refused.keys()).copied().collect();
    // If two requests acknowledge the same messages at the same time, the second finds them removed.
    hold_envelopes(conn, device.0, &all)?;
    let held = held(conn, device.0, &all)?;
    let removed = remove_deliveries(conn, caller, &all)?;
    if removed == 0 && !tokens::has_token(conn, caller)? {
        return Err(TokenRevoked.into());
    }
    let (mut told, mut told_of_messages) = (Vec::new(), BTreeSet::new());
    for (id, _, kind, sender, group_id) in &held {
        let about: MessageKind = kind.parse().map_err(StoreError::fatal)?;
        let Some(reason) = refused.get(id) else { continue };
        let message = serde_json::to_vec(&Refusal { about, reason: *reason }).map_err(StoreError::fatal)?;
        let kind = MessageKind::Unreadable.into();
        let notice = NewEnvelope { sender: device.0, kind, group_id, message: &message, at: now, expires_at };
        match about {
            // Ignores the queue limit: each notice answers one Welcome or Commit that the owner of this queue sent.
            MessageKind::Welcome | MessageKind::Commit => {
                told.extend(put(conn, notice, &[(*sender, Part::Welcomes)])?);
            }
            // Takes room of this device's share: there may be many messages.
            MessageKind::Message if told_of_messages.insert((*sender, group_id)) => {
                let (own, to) = (HashSet::from([device.0]), BTreeSet::from([*sender]));
                told.extend(queue(conn, notice, &to, (&own, capacity), |_| &[Part::Common])?.to);
            }
            MessageKind::Message | MessageKind::Unreadable => {}
        }
    }
    let envelopes: BTreeSet<_> = held.iter().map(|row| row.1).collect();
    let envelopes: Vec<_> = envelopes.into_iter().collect();
    if !envelopes.is_empty() {
        let needed: BTreeSet<_> = still_delivered(conn, &envelopes)?.into_iter().collect();
        let done: Vec<_> = envelopes.into_iter().filter(|envelope| !needed.contains(envelope)).collect();
        remove_envelopes(conn, &done)?;
    }
    Ok((removed, told))
}

impl Store {
    /// Queues a message, if the group is in the expected epoch.
    ///
    /// # Errors
    /// See [`PostError`], or when the database fails. Nothing is queued then.
    pub fn post(
        &self,
        request: &Post,
        expected_epoch: Option<i64>,
        now: Timestamp,
    ) -> Result<Delivered, Failure<PostError>> {
        self.write("post", |conn| post(conn, request, expected_epoch, now))
    }

    /// Returns the oldest messages that wait for the caller, and the version of its user's devices. `has_room` returns
    /// whether the answer has room for this many bytes of messages; if not, fewer messages are returned.
    ///
    /// # Errors
    /// `TokenRevoked`, or when the database fails.
    pub fn queued(
        &self,
        caller: &ShownToken,
        limit: u32,
        has_room: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Queued, Failure<TokenRevoked>> {
        let queued = self.read(|conn| {
            // Reads the version before the messages: a change in between is then seen at the next call, not missed.
            let Some(devices_version) = signature_keys::devices_version(conn, caller)? else { return Ok(None) };
            let devices_version = u64::try_from(devices_version).map_err(StoreError::fatal)?;
            let (messages, lacks_room) = match queued(conn, caller, limit, has_room)? {
                Ok(messages) => (messages, None),
                Err(bytes) => (Vec::new(), Some(bytes)),
            };
            Ok::<_, StoreError>(Some(Queued { messages, devices_version, lacks_room }))
        })?;
        queued.ok_or_else(|| TokenRevoked.into())
    }

    /// Removes messages from a device's queue. The senders of refused messages are told the reasons; `capacity` is that of
    /// their queues. Returns the number of removed messages, and the devices whose queues have new messages.
    ///
    /// # Errors
    /// `TokenRevoked`, or when the database fails. Nothing has left the queue then.
    pub fn acknowledge(
        &self,
        caller: &ShownToken,
        messages: (&[i64], &BTreeMap<i64, RefusalReason>),
        (now, expires_at): (Timestamp, Timestamp),
        capacity: u32,
    ) -> Result<(usize, Vec<DeviceId>), Failure<TokenRevoked>> {
        let bounds = (now.as_second(), expires_at.as_second(), capacity);
        self.write("acknowledge", |conn| acknowledge(conn, caller, messages, bounds))
    }
}
