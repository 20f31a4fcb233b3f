//! Adds users to a group.

use std::collections::BTreeSet;

use keypool_openapi::{
    Base64Bytes, DeviceOf, MAX_TARGETS, MissingDevice, MissingReason, ProblemType, Reservation, ReserveRequest,
    Undelivered, UserName,
};
use tracing::info;

use super::{
    commit::{Change, Refusal},
    membership::{ATTEMPTS, MlsMembership},
    reserve::{Reserved, device_of, release},
    unfit::UnfitDevice,
};
use crate::{
    error::{Error, Result},
    identity_check::Notice,
    leaf_identity::credential_name,
};

/// The result of inviting users to a group.
#[derive(Clone, Debug, Default, serde::Serialize, utoipa::ToSchema)]
pub struct Invited {
    /// The devices that were added.
    pub added: Vec<DeviceOf>,
    /// The devices that were not added, and the users without devices.
    pub missing: Vec<MissingDevice>,
    /// The devices that were not added because this program cannot add their KeyPackages to the group.
    pub unfit: Vec<UnfitDevice>,
    /// The devices for which the server could not queue the Commit or the Welcome.
    pub undelivered: Vec<Undelivered>,
    /// Notices for the user about the devices, for example that one has a new signature key.
    pub notices: Vec<Notice>,
}

impl Invited {
    fn extend(&mut self, other: Self) {
        self.added.extend(other.added);
        self.missing.extend(other.missing);
        self.unfit.extend(other.unfit);
        self.undelivered.extend(other.undelivered);
        self.notices.extend(other.notices);
    }
}

/// The devices to add of the users that are invited.
#[derive(Clone, Copy, Debug)]
pub(super) enum Invitees<'i> {
    AllDevices,
    Devices(&'i [DeviceOf]),
    /// Nobody invited these: they come in by themselves, as long as the group allows it.
    Arriving(&'i [DeviceOf]),
}

impl<'i> Invitees<'i> {
    const fn only(self) -> Option<&'i [DeviceOf]> {
        match self {
            Self::AllDevices => None,
            Self::Devices(only) | Self::Arriving(only) => Some(only),
        }
    }
}

/// The reason in `missing` for a problem that says that nothing could be reserved.
fn missing_reason(problem: ProblemType) -> Option<MissingReason> {
    Some(match problem {
        ProblemType::UnknownUser => MissingReason::UnknownUser,
        ProblemType::UnknownDevice => MissingReason::UnknownDevice,
        ProblemType::PoolExhausted => MissingReason::PoolExhausted,
        ProblemType::PoolExpired => MissingReason::PoolExpired,
        ProblemType::NoMatchingCiphersuite => MissingReason::NoMatchingCiphersuite,
        _ => return None,
    })
}

fn missing(user: &UserName, reason: MissingReason) -> MissingDevice {
    MissingDevice { user: user.clone(), device: None, reason, ciphersuites: Vec::new() }
}

impl MlsMembership<'_> {
    /// Adds all devices of some users to a group: reserves a KeyPackage of each, and commits. The server accepts the
    /// Commit, the spends and the Welcome together, or none of them. More users than one call to the server takes are
    /// added by several Commits; after an error, repeat the call: members are spared.
    ///
    /// If another Commit came first, merges that one and commits again, with the same reservations except those of
    /// devices that are now members. Replaces a reservation that lapsed and went to another adder. If the answer does
    /// not arrive, keeps the Commit: the next call on any group finds out whether the server accepted it.
    pub async fn invite(&self, group_id: &[u8], users: &[UserName]) -> Result<Invited> {
        let _turn = self.store.turns.groups().await;
        self.catch_up_in_turn().await?;
        self.check_writable(group_id)?;
        self.check_stays(group_id)?;
        // A member who wants to leave, and is invited again, goes first.
        self.commit_to_proposals(group_id).await?;
        self.invite_those(group_id, users, Invitees::AllDevices).await
    }

    /// Adds these devices to a group; otherwise like [`Self::invite`]. A device that is in the group is spared.
    pub async fn invite_devices(&self, group_id: &[u8], devices: &[DeviceOf]) -> Result<Invited> {
        let _turn = self.store.turns.groups().await;
        self.catch_up_in_turn().await?;
        self.check_writable(group_id)?;
        self.check_stays(group_id)?;
        self.commit_to_proposals(group_id).await?;
        let users: BTreeSet<_> = devices.iter().map(|device| device.user.clone()).collect();
        self.invite_those(group_id, &users.into_iter().collect::<Vec<_>>(), Invitees::Devices(devices)).await
    }

    /// Like [`Self::invite`], but adds only some of the users' devices. The caller has the turn.
    pub(super) async fn invite_those(
        &self,
        group_id: &[u8],
        users: &[UserName],
        invitees: Invitees<'_>,
    ) -> Result<Invited> {
        let (mut all, mut refused) = (Invited::default(), None);
        for users in users.chunks(MAX_TARGETS) {
            match self.invite_at_once(group_id, users, invitees).await {
                Ok(invited) => all.extend(invited),
                Err(error) => {
                    // The server reserves for the other users although it has nothing of these.
                    let Some(reason) = error.problem().and_then(missing_reason) else { return Err(error) };
                    all.missing.extend(users.iter().map(|user| missing(user, reason)));
                    refused.get_or_insert(error);
                }
            }
        }
        match refused {
            Some(error) if all.added.is_empty() => Err(error),
            _ => Ok(all),
        }
    }

    /// Adds as many users as one call to the server takes.
    async fn invite_at_once(&self, group_id: &[u8], users: &[UserName], invitees: Invitees<'_>) -> Result<Invited> {
        self.settle_in_turn().await?;
        self.check_writable(group_id)?;
        let request = ReserveRequest {
            ciphersuite: Some(self.load_group(group_id)?.ciphersuite().into()),
            group_id: Some(Base64Bytes(group_id.to_vec())),
            ..ReserveRequest::of_all(users.to_vec())
        };
        let Reserved { reservations, missing, mut unfit, notices } = self.reserve(&request).await?;
        let only = invitees.only();
        let is_named = |device: &DeviceOf| only.is_none_or(|only| only.contains(device));
        let is_meant = |one: &Reservation| is_named(&DeviceOf { user: one.user.clone(), device: one.device.clone() });
        let (mut held, left_out): (Vec<_>, Vec<_>) = reservations.into_iter().partition(is_meant);
        unfit.retain(|one| is_named(&one.device));
        release(self.connection.api(), &left_out).await;
        let is_missed = |one: &MissingDevice| {
            let Some(device) = &one.device else { return true };
            only.is_none_or(|only| only.iter().any(|of| of.user == one.user && of.device == *device))
        };
        let mut missing: Vec<_> = missing.into_iter().filter(is_missed).collect();
        let undelivered = match self.add(group_id, (&mut held, invitees), (&mut missing, &mut unfit)).await {
            Ok(undelivered) => undelivered,
            Err(refusal) => {
                // A Commit without an answer may still be accepted: keep its reservations.
                if refusal.is_final() {
                    release(self.connection.api(), &held).await;
                }
                return Err(refusal.into_error());
            }
        };
        let added: Vec<_> = held.into_iter().map(|one| DeviceOf { user: one.user, device: one.device }).collect();
        if !added.is_empty() {
            self.send_name(group_id).await;
        }
        Ok(Invited { added, missing, unfit, undelivered, notices })
    }

    /// Commits the addition of the devices in `held`. Afterwards, `held` lists the devices that were added, and the
    /// other lists have those that were not.
    async fn add(
        &self,
        group_id: &[u8],
        (held, invitees): (&mut Vec<Reservation>, Invitees<'_>),
        (missing, unfit): (&mut Vec<MissingDevice>, &mut Vec<UnfitDevice>),
    ) -> Result<Vec<Undelivered>, Refusal> {
        let mut attempts = 0;
        loop {
            self.release_unneeded(group_id, held, invitees).await?;
            if held.is_empty() {
                return Ok(Vec::new());
            }
            attempts += 1;
            match self.commit_once(group_id, Change::Add(held)).await {
                Err(Refusal::Stale(_)) if attempts < ATTEMPTS => {}
                Err(Refusal::Lapsed(id, error)) => {
                    let lapsed = held.iter().position(|one| one.reservation_id == id);
                    let Some(at) = lapsed.filter(|_| attempts < ATTEMPTS) else {
                        return Err(Refusal::Lapsed(id, error));
                    };
                    let (no_other, unfit_other) = self.replace(group_id, held, at).await?;
                    missing.extend(no_other);
                    unfit.extend(unfit_other);
                }
                Err(Refusal::NotMade(error @ Error::Mls { .. })) => {
                    let found = self.release_unfit(group_id, held).await?;
                    if found.is_empty() {
                        return Err(Refusal::NotMade(error));
                    }
                    unfit.extend(found);
                }
                outcome => return outcome,
            }
        }
    }

    /// Replaces a lapsed reservation in `held`, if the device has another KeyPackage. On an error, releases all
    /// reservations.
    async fn replace(
        &self,
        group_id: &[u8],
        held: &mut Vec<Reservation>,
        at: usize,
    ) -> Result<(Vec<MissingDevice>, Vec<UnfitDevice>)> {
        let gone = held.remove(at);
        info!(device = %gone.device, "a reservation lapsed and went to another adder; reserving another KeyPackage");
        let user = gone.user;
        let request = ReserveRequest {
            device: Some(gone.device),
            ciphersuite: Some(gone.ciphersuite),
            group_id: Some(Base64Bytes(group_id.to_vec())),
            ..ReserveRequest::of(user)
        };
        match self.reserve(&request).await {
            Ok(Reserved { reservations, missing, unfit, .. }) => {
                held.extend(reservations);
                Ok((missing, unfit))
            }
            Err(error) => {
                release(self.connection.api(), held).await;
                Err(error)
            }
        }
    }

    /// Releases the reservations of devices that are already in the group with their signature key. A device with another
    /// key was installed anew, or has changed its key: its KeyPackage replaces its leaf. So does that of a device that asked to
    /// be brought in.
    ///
    /// If nobody invited the devices, also releases the reservations of those that may not come in by themselves.
    async fn release_unneeded(
        &self,
        group_id: &[u8],
        held: &mut Vec<Reservation>,
        invitees: Invitees<'_>,
    ) -> Result<()> {
        let is_invited = !matches!(invitees, Invitees::Arriving(_));
        let members: BTreeSet<_> = self
            .load_group(group_id)?
            .members()
            .map(|member| (credential_name(&member.credential), member.signature_key))
            .collect();
        let mut spared = Vec::new();
        for one in std::mem::take(held) {
            let key_package = self.read_reserved(&one)?;
            let signature_key = key_package.leaf_node().signature_key().as_slice().to_vec();
            let (device, own) = (device_of(&one), self.own_device());
            // No device can remove its own leaf.
            let has_key = members.contains(&(device.to_string(), signature_key));
            let is_member = device == own || has_key && !self.store.ask_of(group_id, &device)?.has_asked;
            let is_needed = !is_member && (is_invited || self.admits_reserved(group_id, &device, has_key)?);
            if is_needed { held.push(one) } else { spared.push(one) }
        }
        release(self.connection.api(), &spared).await;
        Ok(())
    }
}
