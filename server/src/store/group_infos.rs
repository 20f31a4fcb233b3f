//! The GroupInfo of each group's current epoch, and the devices in the group: by these, a member that fell behind comes
//! back.

use std::collections::{BTreeSet, HashSet};

use diesel::{dsl::sum, prelude::*};
use keypool_openapi::DeviceOf;

use super::{
    database::{
        Conn, Store, StoreError,
        rows::Names,
        schema::{devices as device_rows, group_infos, group_members},
        sql::statements,
    },
    devices,
    queues::known,
};

/// The most bytes of GroupInfos that are kept for one user. A group of 1,000 devices takes about 300 KB.
pub(super) const SHARE: i64 = 32 * 1024 * 1024;

/// A GroupInfo to keep, and the devices that are in the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewGroupInfo {
    /// The serialised `MLSMessage`.
    pub bytes: Vec<u8>,
    /// The devices in the group.
    pub members: Vec<DeviceOf>,
}

/// The GroupInfo of a group's current epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInfo {
    /// The epoch.
    pub epoch: i64,
    /// The serialised `MLSMessage`.
    pub bytes: Vec<u8>,
    /// The devices in the group.
    pub members: Vec<DeviceOf>,
}

/// A group in which devices of a user are: id, epoch, and whether a given device is one of them.
pub type ListedGroupRow = (Vec<u8>, i64, bool);

statements! {
    fn bytes_of_others(conn, user: &str, group_id: &[u8]) -> QueryResult<Option<i64>> {
        group_infos::table
            .filter(group_infos::user_name.eq(user).and(group_infos::group_id.ne(group_id)))
            .select(sum(group_infos::size))
            .first(conn)
    }

    fn put_info(conn, row: NewRow<'_>) -> QueryResult<usize> {
        diesel::insert_into(group_infos::table)
            .values(row)
            .on_conflict(group_infos::group_id)
            .do_update()
            .set(row)
            .execute(conn)
    }

    fn delete_info(conn, group_id: &[u8]) -> QueryResult<usize> {
        diesel::delete(group_infos::table.find(group_id)).execute(conn)
    }

    fn delete_infos(conn) -> QueryResult<usize> {
        diesel::delete(group_infos::table).execute(conn)
    }

    fn delete_members(conn) -> QueryResult<usize> {
        diesel::delete(group_members::table).execute(conn)
    }

    fn info_of(conn, group_id: &[u8]) -> QueryResult<Option<(i64, Vec<u8>)>> {
        group_infos::table.find(group_id).select((group_infos::epoch, group_infos::group_info)).first(conn).optional()
    }

    fn members_of(conn, group_id: &[u8]) -> QueryResult<Vec<i64>> {
        group_members::table
            .filter(group_members::group_id.eq(group_id))
            .order(group_members::device_id.asc())
            .select(group_members::device_id)
            .load(conn)
    }

    fn add_members(conn, rows: &[NewMember<'_>]) -> QueryResult<usize> {
        diesel::insert_into(group_members::table).values(rows).execute(conn)
    }

    fn remove_members(conn, group_id: &[u8], devices: &[i64]) -> QueryResult<usize> {
        let gone = group_members::group_id.eq(group_id).and(group_members::device_id.eq_any(devices));
        diesel::delete(group_members::table.filter(gone)).execute(conn)
    }

    fn remove_all_members(conn, group_ids: &[Vec<u8>]) -> QueryResult<usize> {
        diesel::delete(group_members::table.filter(group_members::group_id.eq_any(group_ids))).execute(conn)
    }

    fn is_listed(conn, group_id: &[u8], device: i64) -> QueryResult<bool> {
        diesel::select(diesel::dsl::exists(group_members::table.find((group_id, device)))).get_result(conn)
    }

    /// Returns those of these groups in which a device is.
    fn listed_in(conn, device: i64, group_ids: &[&[u8]]) -> QueryResult<Vec<Vec<u8>>> {
        group_members::table
            .filter(group_members::device_id.eq(device).and(group_members::group_id.eq_any(group_ids)))
            .select(group_members::group_id)
            .load(conn)
    }

    /// Returns the groups in which a device of the user is, after a group id, with their epochs.
    fn groups_of_user(conn, user: &str, after: &[u8], limit: i64) -> QueryResult<Vec<(Vec<u8>, i64)>> {
        let own = device_rows::table.filter(device_rows::user_name.eq(user)).select(device_rows::id);
        let groups = group_members::table
            .filter(group_members::device_id.eq_any(own).and(group_members::group_id.gt(after)))
            .select(group_members::group_id)
            .distinct()
            .order(group_members::group_id.asc())
            .limit(limit);
        let ids: Vec<Vec<u8>> = groups.load(conn)?;
        group_infos::table
            .filter(group_infos::group_id.eq_any(ids))
            .order(group_infos::group_id.asc())
            .select((group_infos::group_id, group_infos::epoch))
            .load(conn)
    }

    fn aged(conn, before: i64, limit: i64) -> QueryResult<Vec<Vec<u8>>> {
        group_infos::table
            .filter(group_infos::at.le(before))
            .order(group_infos::at.asc())
            .limit(limit)
            .select(group_infos::group_id)
            .load(conn)
    }

    fn delete_aged(conn, group_ids: &[Vec<u8>], before: i64) -> QueryResult<usize> {
        let aged = group_infos::group_id.eq_any(group_ids).and(group_infos::at.le(before));
        diesel::delete(group_infos::table.filter(aged)).execute(conn)
    }
}

#[derive(Clone, Copy, Insertable, AsChangeset)]
#[diesel(table_name = group_infos)]
struct NewRow<'a> {
    group_id: &'a [u8],
    epoch: i64,
    group_info: &'a [u8],
    user_name: &'a str,
    size: i32,
    at: i64,
}

#[derive(Clone, Copy, Insertable)]
#[diesel(table_name = group_members)]
struct NewMember<'a> {
    group_id: &'a [u8],
    device_id: i64,
}

/// Keeps the GroupInfo of a group's current epoch, in place of the one before, and its members. Returns whether the
/// share of the sender's user has room for it; otherwise nothing of the group is kept.
pub(super) fn keep(
    conn: &mut Conn<'_>,
    (group_id, epoch): (&[u8], i64),
    by_user: &str,
    info: &NewGroupInfo,
    now: i64,
) -> Result<bool, StoreError> {
    let size = i32::try_from(info.bytes.len()).map_err(StoreError::fatal)?;
    let others = bytes_of_others(conn, by_user, group_id)?.unwrap_or_default();
    if others.saturating_add(size.into()) > SHARE {
        forget(conn, group_id)?;
        return Ok(false);
    }
    put_info(conn, NewRow { group_id, epoch, group_info: &info.bytes, user_name: by_user, size, at: now })?;
    let after: BTreeSet<_> = known(conn, &info.members)?.into_values().collect();
    let before: BTreeSet<_> = members_of(conn, group_id)?.into_iter().collect();
    let gone: Vec<_> = before.difference(&after).copied().collect();
    let new: Vec<_> = after.difference(&before).map(|&device_id| NewMember { group_id, device_id }).collect();
    if !gone.is_empty() {
        remove_members(conn, group_id, &gone)?;
    }
    if !new.is_empty() {
        add_members(conn, &new)?;
    }
    Ok(true)
}

/// Forgets what is kept of a group: it is of a past epoch.
pub(super) fn forget(conn: &mut Conn<'_>, group_id: &[u8]) -> QueryResult<()> {
    if delete_info(conn, group_id)? > 0 {
        remove_all_members(conn, &[group_id.to_vec()])?;
    }
    Ok(())
}

/// Forgets what is kept of all groups.
pub(super) fn forget_all(conn: &mut Conn<'_>) -> QueryResult<()> {
    delete_infos(conn)?;
    delete_members(conn).map(drop)
}

/// Whether the GroupInfo of this epoch of the group is kept.
pub(super) fn is_current(conn: &mut Conn<'_>, (group_id, epoch): (&[u8], i64)) -> QueryResult<bool> {
    Ok(info_of(conn, group_id)?.is_some_and(|(kept, _)| kept == epoch))
}

/// Whether a device was in the group after its newest Commit, and the GroupInfo of that epoch is kept.
pub(super) fn may_come_back(conn: &mut Conn<'_>, group: (&[u8], i64), device: i64) -> QueryResult<bool> {
    Ok(is_current(conn, group)? && is_listed(conn, group.0, device)?)
}

/// Deletes GroupInfos that no Commit has replaced since `before`.
pub(super) fn forget_aged(conn: &mut Conn<'_>, before: i64, limit: i64) -> QueryResult<usize> {
    let aged = aged(conn, before, limit)?;
    if aged.is_empty() {
        return Ok(0);
    }
    let deleted = delete_aged(conn, &aged, before)?;
    remove_all_members(conn, &aged)?;
    Ok(deleted)
}

/// Returns the GroupInfo of a group for a device of a user who has a device in the group.
fn group_info(conn: &mut Conn<'_>, group_id: &[u8], user: &str) -> Result<Option<GroupInfo>, StoreError> {
    let Some((epoch, bytes)) = info_of(conn, group_id)? else { return Ok(None) };
    let ids = members_of(conn, group_id)?;
    let rows = devices::devices_by_id(conn, &ids)?;
    let names = Names::from_columns(rows)?;
    let members = ids.iter().map(|id| names.of(*id)).collect::<Result<Vec<_>, _>>()?;
    let is_listed = members.iter().any(|member| member.user.as_str() == user);
    Ok(is_listed.then_some(GroupInfo { epoch, bytes, members }))
}

impl Store {
    /// Returns the GroupInfo of a group's current epoch, for a user who has a device in the group. `None` if nothing is
    /// kept, or the user has none.
    ///
    /// # Errors
    /// When the database fails.
    pub fn group_info(&self, group_id: &[u8], user: &str) -> Result<Option<GroupInfo>, StoreError> {
        self.read(|conn| group_info(conn, group_id, user))
    }

    /// Returns the groups with a GroupInfo in which devices of a user are, in the order of their ids, after a group id.
    ///
    /// # Errors
    /// When the database fails.
    pub fn groups_of(
        &self,
        (user, device): (&str, i64),
        after: &[u8],
        limit: i64,
    ) -> Result<Vec<ListedGroupRow>, StoreError> {
        self.read(|conn| {
            let groups = groups_of_user(conn, user, after, limit)?;
            let ids: Vec<_> = groups.iter().map(|(group_id, _)| group_id.as_slice()).collect();
            let listed: HashSet<_> = listed_in(conn, device, &ids)?.into_iter().collect();
            let row = |(group_id, epoch): (Vec<u8>, i64)| {
                let is_listed = listed.contains(&group_id);
                (group_id, epoch, is_listed)
            };
            Ok::<_, StoreError>(groups.into_iter().map(row).collect())
        })
    }
}
