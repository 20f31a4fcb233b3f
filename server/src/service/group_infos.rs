//! The way back into a group: keeps and answers its GroupInfo, and checks the external Commit of a device that comes back.

use keypool_openapi::{
    Base64Bytes, CommitRequest, DeviceOf, GroupId, GroupInfoRequest, GroupInfoResponse, GroupList, GroupsQuery,
    KeptGroupInfo, ListedGroup, ProblemType,
};
use keypool_validation::group_info::{group_info, joiner};
use sha2::{Digest as _, Sha256};

use super::{
    Service,
    mls_messages::{malformed, representable, sha256, sized, unknown_group},
};
use crate::{
    caller::Caller,
    problem::{About, Failure, unknown_token},
    store::{self, GroupInfoError, KeepGroupInfo, MESSAGE_UNIT, NewGroupInfo, Registration},
};

/// The most groups in one answer.
const PAGE: usize = 1_000;

impl Service {
    /// Keeps the GroupInfo of a group's current epoch, if the newest Commit brought none.
    pub async fn keep_group_info(
        &self,
        caller: Caller,
        group_id: GroupId,
        request: GroupInfoRequest,
    ) -> Result<KeptGroupInfo, Failure> {
        let epoch = group_info(&request.group_info.0).map(|info| info.epoch);
        let epoch = representable(epoch.unwrap_or_default())?;
        let info = new_info(&request.group_info, (&request.members, &caller), (&group_id, epoch))?;
        let proof_digest = match &request.proof {
            Some(proof) => {
                sha256(&proof.0)?;
                Some(Sha256::digest(&proof.0).into())
            }
            None => None,
        };
        self.limits.request(&caller.device.user, info.bytes.len() / MESSAGE_UNIT)?;
        self.block(move |service, now| {
            let (by, by_user) = (caller.shown_token(), caller.device.user.to_string());
            let want = KeepGroupInfo { by, by_user, group_id: group_id.as_bytes().to_vec(), epoch, proof_digest, info };
            match service.store.keep_group_info(&want, now) {
                Ok(()) => Ok(KeptGroupInfo { epoch: epoch.cast_unsigned() }),
                Err(store::Failure::Refused(error)) => Err(not_kept(error, &group_id, epoch)),
                Err(store::Failure::Store(error)) => Err(error.into()),
            }
        })
        .await
    }

    /// Returns the GroupInfo of a group's current epoch to the devices of users who have a device in the group.
    pub async fn group_info(&self, caller: Caller, group_id: GroupId) -> Result<GroupInfoResponse, Failure> {
        self.limits.request(&caller.device.user, 0)?;
        self.block(move |service, _| {
            let kept = service.store.group_info(group_id.as_bytes(), caller.device.user.as_str())?;
            let kept = kept.ok_or_else(|| nothing_kept(&group_id))?;
            service.limits.request(&caller.device.user, kept.bytes.len() / MESSAGE_UNIT)?;
            Ok::<_, Failure>(GroupInfoResponse {
                epoch: kept.epoch.cast_unsigned(),
                group_info: Base64Bytes(kept.bytes),
                members: kept.members,
            })
        })
        .await
    }

    /// Returns the groups in which devices of the caller's user are, as far as their GroupInfos are kept.
    pub async fn groups(&self, caller: Caller, query: GroupsQuery) -> Result<GroupList, Failure> {
        self.limits.request(&caller.device.user, 0)?;
        self.block(move |service, _| {
            let after = query.after.as_ref().map_or(&[][..], GroupId::as_bytes);
            let (user, device) = (caller.device.user.as_str(), caller.device.id.0);
            let limit = i64::try_from(PAGE).unwrap_or(i64::MAX);
            let rows = service.store.groups_of((user, device), after, limit)?;
            let next = rows.last().filter(|_| rows.len() == PAGE).map(|row| GroupId::new(row.0.clone()));
            let listed = |(group_id, epoch, listed): store::ListedGroupRow| ListedGroup {
                group_id: Base64Bytes(group_id),
                epoch: epoch.cast_unsigned(),
                listed,
            };
            let next = next.transpose().map_err(store::StoreError::fatal)?;
            Ok::<_, Failure>(GroupList { groups: rows.into_iter().map(listed).collect(), next })
        })
        .await
    }

    /// Checks that the caller's device signed an external Commit, with its current signature key. Otherwise the thief of a
    /// token could take an epoch with a Commit that all members refuse.
    pub(super) fn check_external(
        &self,
        caller: &Caller,
        (group_id, epoch): (&GroupId, i64),
        request: &CommitRequest,
    ) -> Result<(), Failure> {
        let kept = self.store.group_info(group_id.as_bytes(), caller.device.user.as_str())?;
        // Of another epoch: the store finds out which, or that it is a repetition.
        let Some(kept) = kept.filter(|kept| kept.epoch == epoch) else { return Ok(()) };
        let read = group_info(&kept.bytes).ok_or_else(|| nothing_kept(group_id))?;
        let joiner = joiner(&request.commit.0, &read).ok_or_else(|| {
            malformed(format!(
                "The external Commit is not signed by its own leaf for epoch {epoch} of the group {group_id}. Make it from the \
                 `group_info` of GET /groups/{group_id}/info."
            ))
        })?;
        let own = caller.device.named();
        if !self.policy.binds_keys {
            return Ok(());
        }
        let registration = Registration { device: caller.device.id, at: caller.device.registered_at.as_second() };
        let is_current = |key: &store::KeptKey| {
            (key.registration, key.ciphersuite) == (registration, read.ciphersuite)
                && key.until.is_none()
                && key.signature_key == joiner.signature_key
        };
        let has_key = self.store.signature_keys(caller.device.id)?.iter().any(is_current);
        if joiner.identity != own.to_string().as_bytes() || !has_key {
            return Err(Failure::new(
                ProblemType::Forbidden,
                format!(
                    "The external Commit's leaf must carry the credential and the current signature key of {own}. A device with \
                     another key than its leaf in the group is brought back by a member's Commit."
                ),
            ));
        }
        Ok(())
    }
}

/// Checks a GroupInfo for this epoch of a group.
pub(super) fn new_info(
    info: &Base64Bytes,
    (members, caller): (&[DeviceOf], &Caller),
    (group_id, epoch): (&GroupId, i64),
) -> Result<NewGroupInfo, Failure> {
    sized("group_info", &info.0)?;
    let read = group_info(&info.0)
        .ok_or_else(|| malformed("The `group_info` is not exactly one MLSMessage with a GroupInfo."))?;
    if read.group_id != group_id.as_bytes() || read.epoch != epoch.cast_unsigned() {
        return Err(malformed(format!(
            "The `group_info` must be of epoch {epoch} of the group {group_id}; it is of epoch {} of {}.",
            read.epoch,
            GroupId::new(read.group_id.to_vec()).map_or_else(|_| "another group".to_owned(), |id| id.to_string())
        )));
    }
    if !read.is_complete {
        return Err(malformed("The `group_info` lacks the extension `ratchet_tree` or `external_pub`."));
    }
    let own = caller.device.named();
    if !members.contains(&own) {
        return Err(malformed(format!("`members` must name the devices in the group, and {own} among them.")));
    }
    Ok(NewGroupInfo { bytes: info.0.clone(), members: members.to_vec() })
}

/// The refusal of an external Commit of a device that was not in the group.
pub(super) fn not_listed(group_id: &GroupId) -> Failure {
    Failure::new(
        ProblemType::Forbidden,
        format!(
            "An external Commit brings back a device of the group {group_id}, and no GroupInfo of its epoch lists the caller. Ask a \
             member to add this device. Nothing was delivered."
        ),
    )
}

fn nothing_kept(group_id: &GroupId) -> Failure {
    let detail = format!(
        "There is no GroupInfo of the group {group_id}: the newest Commit brought none, or no device of the caller's user is in \
         the group. Ask a member to add this device."
    );
    Failure::new(ProblemType::UnknownGroup, detail)
}

fn not_kept(error: GroupInfoError, group_id: &GroupId, of: i64) -> Failure {
    match error {
        GroupInfoError::TokenRevoked => unknown_token(),
        GroupInfoError::UnknownGroup => unknown_group(group_id),
        GroupInfoError::Stale(epoch) => Failure {
            about: About::Epoch(epoch.cast_unsigned()),
            ..Failure::new(
                ProblemType::StaleEpoch,
                format!(
                    "The group {group_id} is in epoch {epoch}, and the `group_info` is of epoch {of}. Fetch the Commits first."
                ),
            )
        },
        GroupInfoError::NotAMember => Failure::new(
            ProblemType::Forbidden,
            format!("Show the `proof` that the next Commit of the group {group_id} has to show."),
        ),
        GroupInfoError::TooMuch(bytes) => Failure::new(
            ProblemType::PayloadTooLarge,
            format!("The server keeps {bytes} bytes of GroupInfos for each user, and this one does not fit."),
        ),
    }
}
