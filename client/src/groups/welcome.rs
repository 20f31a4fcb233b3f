//! Joins groups from Welcomes.

use std::collections::BTreeSet;

use keypool_openapi::{KeyPackageRef, QueuedMessage};
use openmls::{
    group::WelcomeError,
    prelude::{GroupEpoch, MlsGroup, MlsMessageBodyIn, StagedWelcome, Welcome},
};
use openmls_traits::OpenMlsProvider as _;

use super::{
    admission::Admission,
    encoding::decode,
    group::{join_config, members_of},
    incoming::{Event, Outcome},
    membership::MlsMembership,
};
use crate::{
    cause::Cause,
    error::{Error, Result},
    identity_check::{NewLeaves, Notice, Standings},
    leaf_identity::LeafIdentity,
};

/// A group that was joined from a Welcome.
pub(super) struct JoinedGroup {
    pub(super) group: MlsGroup,
    /// The member who signed the Welcome.
    pub(super) inviter: LeafIdentity,
    /// Notices for the user about its members.
    pub(super) notices: Vec<Notice>,
    /// What its GroupInfo said of devices that come in.
    admission: Admission,
}

impl MlsMembership<'_> {
    /// Joins a group from the `MLSMessage` with a Welcome, if the identity check accepts its members. The same
    /// transaction deletes the keys and metadata of the KeyPackage that the Welcome uses, unless it is a last resort.
    /// On an error nothing changes.
    pub async fn join(&self, welcome: &[u8]) -> Result<MlsGroup> {
        let _turn = self.store.turns.groups().await;
        let mut standings = Standings::default();
        loop {
            match self.store.transaction(|| self.join_within(welcome, None, &standings)) {
                Err(Error::Unchecked { leaves }) => self.check_leaves(&leaves, &mut standings).await?,
                outcome => return outcome.map(|joined| joined.group),
            }
        }
    }

    /// Joins a group, within the caller's transaction. If `inviters` are given, the Welcome must be signed by one of
    /// these keys.
    pub(super) fn join_within(
        &self,
        welcome: &[u8],
        inviters: Option<&BTreeSet<Vec<u8>>>,
        standings: &Standings,
    ) -> Result<JoinedGroup> {
        let welcome = read_welcome(welcome)?;
        let refs = refs(&welcome);
        let config = join_config();
        let (provider, pool) = (self.store.provider(), self.connection.pool());
        let failed = |cause: Cause| Error::mls("join the group from this Welcome")(cause);
        let unusable = |error: WelcomeError<rusqlite::Error>| match error {
            WelcomeError::StorageError(error) => Error::storage("join the group from this Welcome")(error),
            error => failed(error.into()),
        };
        let last_resorts = pool.last_resorts(&refs)?;
        let read = StagedWelcome::build_from_welcome(&provider, &config, welcome).map_err(unusable)?;
        let admission = Admission::of(read.processed_welcome().unverified_group_info().extensions());
        // The leaves of members that joined long ago and never updated are past their lifetime.
        let staged = read.skip_lifetime_validation().build().map_err(unusable)?;
        let inviter = staged.welcome_sender().map_err(|error| failed(error.into()))?;
        let inviter = LeafIdentity {
            credential: inviter.credential().clone(),
            signature_key: inviter.signature_key().as_slice().to_vec(),
            ciphersuite: staged.group_context().ciphersuite(),
            reserved_for: None,
        };
        if inviters.is_some_and(|known| !known.contains(&inviter.signature_key)) {
            return Err(failed(
                "its signer was not a member of the group in the last epoch that this device knows".into(),
            ));
        }
        // Leaves in a tree may have old keys, so the time does not matter here.
        let now = self.now();
        let notices = NewLeaves::of_welcome(&staged).accept(self.store, standings, (now, now))?;
        let group = staged.into_group(&provider).map_err(unusable)?;
        self.epoch_proof(&group)?;
        if let Some(sender) = inviter.device() {
            let group_id = group.group_id().as_slice().to_vec();
            self.store.record_welcome(
                &refs,
                &keypool_transparency::owner::Welcome { sender: sender.to_string(), group_id },
            )?;
        }
        // OpenMLS has deleted the keys of the KeyPackage that it used, unless it is a last resort of the form that it knows.
        pool.keep_last_resorts(&last_resorts)?;
        pool.forget_joined(&refs)?;
        Ok(JoinedGroup { group, inviter, notices, admission })
    }

    /// Whether the local store has the private keys of a KeyPackage that a Welcome is for.
    pub(super) fn has_keys_for(&self, welcome: &[u8]) -> bool {
        let pool = self.connection.pool();
        read_welcome(welcome).is_ok_and(|welcome| {
            refs(&welcome).iter().any(|keypackage_ref| pool.has_keys(keypackage_ref).unwrap_or(true))
        })
    }

    /// Processes a Welcome from the queue. The device may be in the group already: it fell behind, for example after a
    /// restored backup, and was removed and invited again. The Welcome then replaces the stored group only if a member
    /// of it signed the Welcome and its epoch is later, so that the server cannot replace a group by one that it made
    /// up.
    pub(super) fn process_welcome(&self, message: &QueuedMessage, standings: &Standings) -> Result<Outcome> {
        let group_id = &message.group_id.0;
        let known = match self.load_group(group_id) {
            Ok(mut group) => {
                let keys: BTreeSet<_> = group.members().map(|member| member.signature_key).collect();
                let before: BTreeSet<_> = members_of(&group).into_iter().map(|(_, device)| device).collect();
                // Keep its row, which has the name of the group.
                group.delete(self.store.provider().storage()).map_err(Error::storage("delete old keys"))?;
                self.store.delete_pending_commit(group_id)?;
                Some((group.epoch(), keys, before))
            }
            Err(Error::UnknownGroup(_)) => None,
            Err(error) => return Err(error),
        };
        let joined = self.join_within(&message.message.0, known.as_ref().map(|(_, keys, _)| keys), standings)?;
        // After an external Commit that the server has not accepted, the stored epoch is none of the group's.
        let row = self.store.groups()?.into_iter().find(|row| row.group_id == *group_id);
        let is_provisional = row.is_some_and(|row| row.is_provisional);
        let is_after =
            |known: GroupEpoch| joined.group.epoch() > known || is_provisional && joined.group.epoch() == known;
        let is_later = known.as_ref().is_none_or(|(known, ..)| is_after(*known));
        if joined.group.group_id().as_slice() != group_id.as_slice() || !is_later {
            let unfit = "it belongs to another group than the server says, or to a past epoch";
            return Err(Error::mls("join the group from this Welcome")(unfit.into()));
        }
        self.store.put_group(group_id, None, self.now())?;
        self.store.forget_refused_commit(group_id)?;
        // Name the signer. Use the server's word only if the credential names no device.
        let by = joined.inviter.device().unwrap_or_else(|| message.from.clone());
        self.store.set_left(group_id, false)?;
        self.store.delete_wanted_group(group_id)?;
        self.record_entry(&joined.group, &by.to_string(), known.as_ref().map(|(.., before)| before))?;
        self.learn_admission(&joined.group, &joined.admission)?;
        Ok((Event::Joined { by }, joined.notices))
    }
}

fn refs(welcome: &Welcome) -> Vec<KeyPackageRef> {
    welcome.secrets().iter().map(|secrets| secrets.new_member().as_slice().to_vec().into()).collect()
}

fn read_welcome(bytes: &[u8]) -> Result<Welcome> {
    let refused = |cause: Cause| Error::mls("read the Welcome")(cause);
    match decode(bytes).map_err(|error| refused(error.into()))?.extract() {
        MlsMessageBodyIn::Welcome(welcome) => Ok(welcome),
        _ => Err(refused("this MLSMessage is not a Welcome".into())),
    }
}
