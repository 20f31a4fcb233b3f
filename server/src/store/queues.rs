//! The devices' message queues: finds recipients, and queues messages within the limits.

mod shares;

use std::collections::{BTreeSet, HashMap, HashSet};

use diesel::prelude::*;
use jiff::Timestamp;
use keypool_openapi::{DeviceOf, MessageKind, Undelivered, UndeliveredReason, UserName};

use super::{
    database::{
        Conn, StoreError,
        rows::{DeviceColumns, DeviceId, DeviceRow},
        schema::{deliveries, envelopes},
        sql::statements,
    },
    devices, notify,
    tokens::ShownToken,
};
pub(super) use shares::Part;
pub(crate) use shares::UNIT as MESSAGE_UNIT;
use shares::{Shares, cost};

/// A message to queue.
#[derive(Clone, Debug)]
pub struct Post {
    /// The sender's token.
    pub by: ShownToken,
    /// The sender's user. All devices of a user share one limit in each queue.
    pub by_user: UserName,
    /// The group that the message is for.
    pub group_id: Vec<u8>,
    /// The serialised `MLSMessage`.
    pub message: Vec<u8>,
    /// The recipients. The sender itself is left out.
    pub recipients: Vec<DeviceOf>,
    /// The time until which an unfetched message is kept.
    pub expires_at: Timestamp,
    /// The capacity of a queue, in messages of less than 8 KiB. A larger message counts as several.
    pub capacity: u32,
}

/// The result of a post.
#[derive(Clone, Debug, Default)]
pub struct Delivered {
    /// The devices whose queues have new messages.
    pub to: Vec<DeviceId>,
    /// The recipients that the message was not queued for.
    pub undelivered: Vec<Undelivered>,
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

statements! {
    pub(super) fn add_envelope(conn, envelope: NewEnvelope<'_>) -> QueryResult<i64> {
        diesel::insert_into(envelopes::table).values(envelope).returning(envelopes::id).get_result(conn)
    }

    pub(super) fn add_deliveries(conn, new: &[NewDelivery]) -> QueryResult<usize> {
        diesel::insert_into(deliveries::table).values(new).execute(conn)
    }

    pub(super) fn remove_queue(conn, device: i64) -> QueryResult<usize> {
        diesel::delete(deliveries::table.filter(deliveries::device_id.eq(device))).execute(conn)
    }
}

/// Returns the ids of those of these devices that exist.
pub(super) fn known(conn: &mut Conn<'_>, named: &[DeviceOf]) -> Result<HashMap<DeviceOf, i64>, StoreError> {
    let users: BTreeSet<_> = named.iter().map(|one| one.user.as_str()).collect();
    let users: Vec<_> = users.into_iter().collect();
    let rows: Vec<DeviceColumns> = if users.is_empty() { Vec::new() } else { devices::devices_of(conn, &users)? };
    let ids: HashMap<_, _> = rows
        .into_iter()
        .map(|columns| DeviceRow::from_columns(columns).map(|row| (row.named(), row.id.0)))
        .collect::<Result<_, _>>()?;
    let wanted = |one: &DeviceOf| ids.get(one).map(|id| (one.clone(), *id));
    Ok(named.iter().filter_map(wanted).collect())
}

/// Returns the ids of the recipients that exist, and the list of those that do not.
pub(super) fn found(conn: &mut Conn<'_>, post: &Post) -> Result<(BTreeSet<i64>, Vec<Undelivered>), StoreError> {
    let known = known(conn, &post.recipients)?;
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

/// Returns all devices of the sender's user, including removed ones.
pub(super) fn own_devices(conn: &mut Conn<'_>, post: &Post) -> QueryResult<HashSet<i64>> {
    Ok(devices::all_devices_of(conn, post.by_user.as_str())?.into_iter().collect())
}

/// Queues one message for several devices, each in the first of these parts of its queue that accepts it. `own` are the
/// devices of the sender's user. A device whose queue does not accept it is listed in `undelivered`.
pub(super) fn queue(
    conn: &mut Conn<'_>,
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
    let undelivered = if full.is_empty() { Vec::new() } else { devices::devices_by_id(conn, &full)? }
        .into_iter()
        .map(|columns| {
            let DeviceRow { user, device, .. } = DeviceRow::from_columns(columns)?;
            Ok(Undelivered { user, device, reason: UndeliveredReason::QueueFull })
        })
        .collect::<Result<_, StoreError>>()?;
    let to = put(conn, envelope, &to)?;
    Ok(Delivered { to, undelivered })
}

/// Puts one message into queues regardless of their limits, and announces it.
pub(super) fn put(
    conn: &mut Conn<'_>,
    envelope: NewEnvelope<'_>,
    to: &[(i64, Part)],
) -> Result<Vec<DeviceId>, StoreError> {
    if to.is_empty() {
        return Ok(Vec::new());
    }
    let (sender, cost) = (envelope.sender, cost(envelope.message));
    let envelope_id = add_envelope(conn, envelope)?;
    let new =
        |&(device_id, part): &(i64, Part)| NewDelivery { device_id, envelope_id, sender, cost, part: part.number() };
    add_deliveries(conn, &to.iter().map(new).collect::<Vec<_>>())?;
    let devices: Vec<_> = to.iter().map(|(device, _)| *device).collect();
    notify::announce(conn, &devices)?;
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
