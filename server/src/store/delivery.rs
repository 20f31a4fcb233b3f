//! Messages: a queue for each device.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ops::ControlFlow,
};

use diesel::prelude::*;
use jiff::Timestamp;
use keypool_openapi::{Base64Bytes, DeviceOf, MessageKind, QueuedMessage, Undelivered, UndeliveredReason, UserName};

use super::{
    ANSWER_BYTES, Store, StoreError,
    commits::CommitSql,
    connection::{Pools, with_conn},
    devices::DeviceSql,
    key_packages::HoldDevice,
    postgres,
    queue_shares::{Part, QueueShareSql, Shares, cost},
    rows::{DeviceColumns, DeviceId, DeviceRow, Names, statements, timestamp},
    schema::{deliveries, envelopes},
    signature_keys::SignatureKeySql,
    sweep::SweepSql,
    tokens::{CallerError, ShownToken, TokenRevoked, TokenSql, hold_caller, valid},
};
use crate::config::Config;

#[diesel::declare_sql_function]
extern "SQL" {
    /// The bytes of a binary.
    fn length(bytes: diesel::sql_types::Binary) -> diesel::sql_types::Integer;
}

/// Something to be queued.
#[derive(Clone, Debug)]
pub struct Post {
    /// The sender.
    pub by: ShownToken,
    /// The sender's user, whose devices share what they may take of a queue.
    pub by_user: UserName,
    /// The group that it is about.
    pub group_id: Vec<u8>,
    /// The `MLSMessage`.
    pub message: Vec<u8>,
    /// Whom it goes to. The sender itself is left out.
    pub recipients: Vec<DeviceOf>,
    /// Until when it is kept for who does not fetch it.
    pub expires_at: Timestamp,
    /// How much a queue holds, in messages of less than 8 KiB; a larger one counts as several.
    pub capacity: u32,
}

/// What came of a post.
#[derive(Clone, Debug, Default)]
pub struct Delivered {
    /// Whose queues have something new.
    pub to: Vec<DeviceId>,
    /// Whom it was not queued for.
    pub undelivered: Vec<Undelivered>,
}

/// What waits for a device.
#[derive(Clone, Debug)]
pub struct Queued {
    /// The oldest first.
    pub messages: Vec<QueuedMessage>,
    /// Another number whenever the user's devices have changed.
    pub devices_version: u64,
    /// How many bytes the first of them has, where there was no room even for that.
    pub lacks_room: Option<usize>,
}

#[derive(Clone, Copy, Insertable)]
#[diesel(table_name = envelopes, treat_none_as_default_value = false)]
pub(super) struct NewEnvelope<'a> {
    pub sender: i64,
    pub kind: &'static str,
    pub group_id: &'a [u8],
    pub message: &'a [u8],
    pub at: i64,
    pub expires_at: i64,
}

#[derive(Insertable)]
#[diesel(table_name = deliveries, treat_none_as_default_value = false)]
pub(super) struct NewDelivery {
    device_id: i64,
    envelope_id: i64,
    sender: i64,
    cost: i32,
    part: i16,
}

type QueuedColumns = (i64, i64, String, Vec<u8>, Vec<u8>, i64);

/// A delivery, its envelope, and whether that is a Welcome, of whom, about which group.
type HeldColumns = (i64, i64, String, i64, Vec<u8>);

statements! {
    pub(super) trait DeliverySql {
        fn add_envelope(conn, envelope: NewEnvelope<'_>) -> QueryResult<i64> {
            diesel::insert_into(envelopes::table).values(envelope).returning(envelopes::id).get_result(conn)
        }

        fn add_deliveries(conn, new: &[NewDelivery]) -> QueryResult<usize> {
            diesel::insert_into(deliveries::table).values(new).execute(conn)
        }

        /// The oldest deliveries, each with how many bytes it has.
        fn queue_sizes(conn, device: i64, limit: i64) -> QueryResult<Vec<(i64, i32)>> {
            deliveries::table
                .inner_join(envelopes::table)
                .filter(deliveries::device_id.eq(device))
                .order(deliveries::id.asc())
                .limit(limit)
                .select((deliveries::id, length(envelopes::message)))
                .load(conn)
        }

        /// The deliveries up to this one, if the token is still valid.
        fn queued(conn, caller: &ShownToken, last: i64) -> QueryResult<Vec<QueuedColumns>> {
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

        fn held(conn, device: i64, ids: &[i64]) -> QueryResult<Vec<HeldColumns>> {
            deliveries::table
                .inner_join(envelopes::table)
                .filter(deliveries::device_id.eq(device).and(deliveries::id.eq_any(ids)))
                .select((deliveries::id, envelopes::id, envelopes::kind, envelopes::sender, envelopes::group_id))
                .load(conn)
        }

        /// Removes deliveries, if the token is still valid.
        fn remove_deliveries(conn, caller: &ShownToken, ids: &[i64]) -> QueryResult<usize> {
            let held = deliveries::table.filter(deliveries::device_id.eq(caller.device.0).and(deliveries::id.eq_any(ids)));
            diesel::delete(held.filter(diesel::dsl::exists(valid(caller)))).execute(conn)
        }

        fn remove_queue(conn, device: i64) -> QueryResult<usize> {
            diesel::delete(deliveries::table.filter(deliveries::device_id.eq(device))).execute(conn)
        }

        fn still_delivered(conn, envelopes: &[i64]) -> QueryResult<Vec<i64>> {
            deliveries::table
                .filter(deliveries::envelope_id.eq_any(envelopes))
                .select(deliveries::envelope_id)
                .distinct()
                .load(conn)
        }

        fn expired_envelopes(conn, now: i64, limit: i64) -> QueryResult<Vec<i64>> {
            envelopes::table
                .filter(envelopes::expires_at.le(now))
                .order(envelopes::expires_at.asc())
                .limit(limit)
                .select(envelopes::id)
                .load(conn)
        }

        fn remove_envelopes(conn, ids: &[i64]) -> QueryResult<usize> {
            diesel::delete(deliveries::table.filter(deliveries::envelope_id.eq_any(ids))).execute(conn)?;
            diesel::delete(envelopes::table.filter(envelopes::id.eq_any(ids))).execute(conn)
        }

    }
}

/// Tells the servers of a database whose queues have something new, when the transaction is committed.
pub(super) trait Announce {
    fn announce(&mut self, devices: &[i64]) -> QueryResult<()>;
}

/// Locks the envelopes of a device's deliveries until the transaction ends, in the order of their ids, so that two transactions
/// cannot deadlock.
pub(super) trait HoldEnvelopes {
    fn hold_envelopes(&mut self, device: i64, deliveries: &[i64]) -> QueryResult<()>;
}

/// What a server hears of the others of its database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Something has come for these devices.
    For(Vec<DeviceId>),
    /// It could not listen for a while: something may have come for anybody.
    Unsure,
}

/// The numbers of the recipients that there are, and which are not.
pub(super) fn found<C: DeviceSql>(conn: &mut C, post: &Post) -> Result<(BTreeSet<i64>, Vec<Undelivered>), StoreError> {
    let users: BTreeSet<_> = post.recipients.iter().map(|one| one.user.as_str()).collect();
    let users: Vec<_> = users.into_iter().collect();
    let rows: Vec<DeviceColumns> = if users.is_empty() { Vec::new() } else { conn.devices_of(&users)? };
    let known: HashMap<_, _> = rows
        .into_iter()
        .map(|columns| DeviceRow::from_columns(columns).map(|row| (row.named(), row.id.0)))
        .collect::<Result<_, _>>()?;
    let (mut there, mut missing) = (BTreeSet::new(), Vec::new());
    for one in &post.recipients {
        match known.get(one) {
            Some(id) if *id == post.by.device.0 => {}
            Some(id) => drop(there.insert(*id)),
            None => missing.push(Undelivered {
                user: one.user.clone(),
                device: one.device.clone(),
                reason: UndeliveredReason::UnknownDevice,
            }),
        }
    }
    Ok((there, missing))
}

/// All devices of the sender's user, removed ones included.
pub(super) fn own_devices<C: DeviceSql>(conn: &mut C, post: &Post) -> QueryResult<HashSet<i64>> {
    Ok(conn.all_devices_of(post.by_user.as_str())?.into_iter().collect())
}

/// Queues one message for devices, each in the first of these parts of its queue that takes it; `own` are the devices of the
/// sender's user. Devices whose queue takes it nowhere are in `undelivered`.
pub(super) fn queue<C: DeliverySql + QueueShareSql + DeviceSql + Announce>(
    conn: &mut C,
    envelope: NewEnvelope<'_>,
    devices: &BTreeSet<i64>,
    (own, capacity): (&HashSet<i64>, u32),
    parts: impl Fn(i64) -> &'static [Part],
) -> Result<Delivered, StoreError> {
    let devices: Vec<_> = devices.iter().copied().collect();
    let (shares, cost) = (Shares::of(conn, &devices, own, capacity)?, cost(envelope.message));
    let (mut to, mut full) = (Vec::new(), Vec::new());
    for device in devices {
        match shares.part_for(device, cost, parts(device)) {
            Some(part) => to.push((device, part)),
            None => full.push(device),
        }
    }
    let undelivered = if full.is_empty() { Vec::new() } else { conn.devices_by_id(&full)? }
        .into_iter()
        .map(|columns| {
            let DeviceRow { user, device, .. } = DeviceRow::from_columns(columns)?;
            Ok(Undelivered { user, device, reason: UndeliveredReason::QueueFull })
        })
        .collect::<Result<_, StoreError>>()?;
    let to = put(conn, envelope, &to)?;
    Ok(Delivered { to, undelivered })
}

/// Puts one message into queues, whatever they hold already, and announces it.
fn put<C: DeliverySql + Announce>(
    conn: &mut C,
    envelope: NewEnvelope<'_>,
    to: &[(i64, Part)],
) -> Result<Vec<DeviceId>, StoreError> {
    if to.is_empty() {
        return Ok(Vec::new());
    }
    let (sender, cost) = (envelope.sender, cost(envelope.message));
    let envelope_id = conn.add_envelope(envelope)?;
    let new =
        |&(device_id, part): &(i64, Part)| NewDelivery { device_id, envelope_id, sender, cost, part: part.number() };
    conn.add_deliveries(&to.iter().map(new).collect::<Vec<_>>())?;
    let devices: Vec<_> = to.iter().map(|(device, _)| *device).collect();
    conn.announce(&devices)?;
    Ok(devices.into_iter().map(DeviceId).collect())
}

pub(super) fn envelope(post: &Post, kind: MessageKind, now: i64) -> NewEnvelope<'_> {
    NewEnvelope {
        sender: post.by.device.0,
        kind: kind.into(),
        group_id: &post.group_id,
        message: &post.message,
        at: now,
        expires_at: post.expires_at.as_second(),
    }
}

/// Queues a message; `None` where the group is unknown.
fn post<C>(conn: &mut C, want: &Post, now: Timestamp) -> Result<Option<Delivered>, CallerError>
where
    C: CommitSql + DeliverySql + QueueShareSql + DeviceSql + HoldDevice + Announce,
{
    hold_caller::<_, CallerError>(conn, &want.by)?;
    if conn.newest_commit(&want.group_id)?.is_none() {
        return Ok(None);
    }
    let (members, mut undelivered) = found(conn, want)?;
    let message = envelope(want, MessageKind::Message, now.as_second());
    let own = own_devices(conn, want)?;
    let mut delivered = queue(conn, message, &members, (&own, want.capacity), |_| &[Part::Common])?;
    undelivered.append(&mut delivered.undelivered);
    Ok(Some(Delivered { undelivered, ..delivered }))
}

/// The oldest messages of a device for which there is room; `Err` with the bytes of the first where there is none for it.
fn queued<C: DeliverySql + DeviceSql>(
    conn: &mut C,
    caller: &ShownToken,
    limit: u32,
    has_room: &mut dyn FnMut(usize) -> bool,
) -> Result<Result<Vec<QueuedMessage>, usize>, StoreError> {
    // Up to each of them, how many bytes there are.
    let (mut page, mut bytes): (Vec<(i64, usize)>, _) = (Vec::new(), 0);
    for (id, size) in conn.queue_sizes(caller.device.0, i64::from(limit))? {
        bytes += usize::try_from(size).map_err(StoreError::fatal)?;
        // The first one is had however large it is.
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
    let rows = conn.queued(caller, last)?;
    let senders: Vec<_> = rows.iter().map(|row| row.1).collect();
    let names = Names::from_columns(if senders.is_empty() { Vec::new() } else { conn.devices_by_id(&senders)? })?;
    let message = |(id, sender, kind, group_id, message, at): QueuedColumns| {
        Ok(QueuedMessage {
            id: u64::try_from(id).map_err(StoreError::fatal)?,
            kind: kind.parse().map_err(StoreError::fatal)?,
            group_id: Base64Bytes(group_id),
            from: names.of(sender)?,
            message: Base64Bytes(message),
            sent_at: timestamp(at)?,
        })
    };
    rows.into_iter().map(message).collect::<Result<_, StoreError>>().map(Ok)
}

/// Takes messages out of a device's queue, and tells the senders of those Welcomes that could not be opened.
fn acknowledge<C: DeliverySql + HoldEnvelopes + TokenSql + Announce>(
    conn: &mut C,
    caller: &ShownToken,
    (ids, unreadable): (&[i64], &[i64]),
    (now, expires_at): (i64, i64),
) -> Result<(usize, Vec<DeviceId>), CallerError> {
    let device = caller.device;
    let all: Vec<_> = ids.iter().chain(unreadable).copied().collect();
    // Of those who acknowledge the same at the same time, the second sees that the first has done so.
    conn.hold_envelopes(device.0, &all)?;
    let held = conn.held(device.0, &all)?;
    let removed = conn.remove_deliveries(caller, &all)?;
    if removed == 0 && !conn.has_token(caller)? {
        return Err(TokenRevoked.into());
    }
    let mut told = Vec::new();
    let welcome = MessageKind::Welcome.to_string();
    for (_, _, _, sender, group_id) in
        held.iter().filter(|(id, _, kind, ..)| *kind == welcome && unreadable.contains(id))
    {
        let kind = MessageKind::Unreadable.into();
        let notice = NewEnvelope { sender: device.0, kind, group_id, message: &[], at: now, expires_at };
        // However full the queue is: the Welcome was its owner's own.
        told.extend(put(conn, notice, &[(*sender, Part::Welcomes)])?);
    }
    let envelopes: BTreeSet<_> = held.iter().map(|row| row.1).collect();
    let envelopes: Vec<_> = envelopes.into_iter().collect();
    if !envelopes.is_empty() {
        let needed: BTreeSet<_> = conn.still_delivered(&envelopes)?.into_iter().collect();
        let done: Vec<_> = envelopes.into_iter().filter(|envelope| !needed.contains(envelope)).collect();
        conn.remove_envelopes(&done)?;
    }
    Ok((removed, told))
}

impl Store {
    /// Listens, on a thread of its own, to what the other servers of the database announce, until told to stop. SQLite
    /// has no other servers.
    ///
    /// # Errors
    /// When the system cannot start a thread.
    pub fn listen(
        &self,
        config: &Config,
        hear: impl Fn(Heard) -> ControlFlow<()> + Send + 'static,
    ) -> anyhow::Result<()> {
        match &self.pools {
            Pools::Sqlite { .. } => Ok(()),
            Pools::Postgres(_) => postgres::listen(config.database_url.expose().to_owned(), hear),
        }
    }

    /// Queues a message; `None` where the group is unknown.
    ///
    /// # Errors
    /// See [`CallerError`]. Nothing is queued then.
    pub fn post(&self, want: &Post, now: Timestamp) -> Result<Option<Delivered>, CallerError> {
        with_conn!(self, write "post", |conn| post(conn, want, now))
    }

    /// The oldest messages that wait for the caller, and the version of its user's devices. `has_room` says whether there is room
    /// for so many bytes of messages; there are fewer of them where there is not.
    ///
    /// # Errors
    /// See [`CallerError`].
    pub fn queued(
        &self,
        caller: &ShownToken,
        limit: u32,
        has_room: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Queued, CallerError> {
        let queued = with_conn!(self, read, |conn| {
            // The version first: what changes in between is then seen at the next call, and not missed.
            let Some(devices_version) = conn.devices_version(caller)? else { return Ok(None) };
            let devices_version = u64::try_from(devices_version).map_err(StoreError::fatal)?;
            let (messages, lacks_room) = match queued(conn, caller, limit, has_room)? {
                Ok(messages) => (messages, None),
                Err(bytes) => (Vec::new(), Some(bytes)),
            };
            Ok::<_, StoreError>(Some(Queued { messages, devices_version, lacks_room }))
        })?;
        queued.ok_or_else(|| TokenRevoked.into())
    }

    /// Takes messages out of a device's queue; `unreadable` are Welcomes whose senders are told that they could not be
    /// opened. Answers how many there were, and whose queues have something new.
    ///
    /// # Errors
    /// See [`CallerError`]. Nothing has left the queue then.
    pub fn acknowledge(
        &self,
        caller: &ShownToken,
        messages: (&[i64], &[i64]),
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<(usize, Vec<DeviceId>), CallerError> {
        let times = (now.as_second(), expires_at.as_second());
        with_conn!(self, write "acknowledge", |conn| acknowledge(conn, caller, messages, times))
    }

    /// Forgets what was kept long enough, and Commits from before `before` but for each group's newest. Answers how many
    /// rows.
    ///
    /// # Errors
    /// When the database fails. Nothing is forgotten then.
    pub fn forget_messages(&self, before: Timestamp, limit: u32, now: Timestamp) -> Result<usize, StoreError> {
        let (before, limit, now) = (before.as_second(), i64::from(limit), now.as_second());
        with_conn!(self, write "forget_messages", |conn| {
            let ids = conn.expired_envelopes(now, limit)?;
            let rows = if ids.is_empty() { 0 } else { conn.remove_envelopes(&ids)? };
            Ok::<_, StoreError>(rows + conn.forget_commits(before, limit)?)
        })
    }
}
