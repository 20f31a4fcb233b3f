use std::collections::BTreeSet;

use keypool_openapi::{
    Base64Bytes, KeyPackageRef, MissingDevice, ReleaseRequest, Reservation, ReserveRequest, SpendRequest, UserName,
};
use openmls::prelude::{
    Ciphersuite, GroupId, Lifetime, MlsGroup, MlsGroupCreateConfig, MlsGroupJoinConfig, MlsMessageBodyIn, MlsMessageIn,
    MlsMessageOut, ProcessedMessage, ProcessedMessageContent, StagedWelcome, Welcome,
    tls_codec::{self, Deserialize as _, Serialize as _},
};
use openmls_traits::OpenMlsProvider;
use tracing::warn;

use super::{
    CIPHERSUITE, DeviceIdentity, LeafIdentity, MlsConnection, Notice, Progress, RefreshReport, Standing,
    identity_check::{Answers, Claims, read_key_package},
};
use crate::{
    api::ApiClient,
    error::{Cause, Error, Result},
    storage::{GroupRow, LocalStore},
};

/// How long the creator's own leaf is valid, in seconds: 84 days, the most that OpenMLS accepts.
const LEAF_LIFETIME: u64 = 84 * 24 * 60 * 60;

/// How many epochs back a message is still read: it may have been sent before a Commit that came first.
const PAST_EPOCHS: usize = 3;

/// The digits of an id that nobody has for a name: as many as the ids have that are made here. One who chooses a shorter
/// id could choose it to look like the name of another group.
const WHOLE_ID: usize = 32;

/// What came of adding a user to a group.
#[derive(Clone, Debug)]
pub struct Invitation {
    /// The `MLSMessage` with the Welcome, for every device that was added.
    pub welcome: Vec<u8>,
    /// The `MLSMessage` with the Commit, for everyone who was in the group before.
    pub commit: Vec<u8>,
    /// What was used, a reservation for each device that was added.
    pub added: Vec<Reservation>,
    /// The user's devices that had no KeyPackage left, and were not added.
    pub missing: Vec<MissingDevice>,
}

/// A group that this device is in.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Group {
    /// Its id, in hex.
    pub id: String,
    /// What its members call it, without control characters; its id, where its name has not come yet.
    pub name: String,
    /// Its epoch.
    pub epoch: u64,
    /// How many devices are in it.
    pub members: usize,
    /// What can be done in it.
    pub state: GroupState,
    /// Its id.
    #[serde(skip)]
    pub group_id: Vec<u8>,
}

/// What can be done in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupState {
    /// Everything.
    Active,
    /// A Commit was refused here, and the server has taken it: members can talk, and cannot change the group any more.
    Behind,
    /// Another group has taken its place: nothing can be said or changed any more.
    ReadOnly,
}

impl GroupState {
    pub(super) fn of(row: &GroupRow) -> Self {
        match (&row.replaced_by, &row.refused_commit_by) {
            (Some(_), _) => Self::ReadOnly,
            (None, Some(_)) => Self::Behind,
            (None, None) => Self::Active,
        }
    }
}

/// A group that was just joined.
pub(super) struct JoinedGroup {
    pub(super) group: MlsGroup,
    /// The member who signed the Welcome.
    pub(super) inviter: LeafIdentity,
    /// What people should know of its members.
    pub(super) notices: Vec<Notice>,
}

/// A device's membership in groups: making one, adding a user with KeyPackages from the server, and joining.
#[derive(Clone, Copy, Debug)]
pub struct MlsMembership<'a> {
    pub(super) connection: MlsConnection<'a>,
    pub(super) store: &'a LocalStore,
    pub(super) identity: &'a DeviceIdentity,
}

impl<'a> MlsMembership<'a> {
    /// The memberships of the device whose connection this is.
    #[must_use]
    pub fn new(connection: MlsConnection<'a>, identity: &'a DeviceIdentity) -> Self {
        Self { connection, store: connection.store(), identity }
    }

    /// Brings the pool in order, so that others can add this device; see [`MlsConnection::refresh_key_packages`].
    pub async fn refresh_key_packages(&self, progress: &dyn Fn(Progress)) -> Result<RefreshReport> {
        self.connection.refresh_key_packages(self.identity, false, progress).await
    }

    /// Makes a group with a random id and a name that its members alone will know.
    pub fn create_named_group(&self, name: &str) -> Result<Group> {
        // The first of its own: 1, which every client has, unless this device was made without.
        self.create_group_of(self.identity.ciphersuites().first().copied().unwrap_or(CIPHERSUITE), name)
    }

    /// The same in a ciphersuite.
    pub(super) fn create_group_of(&self, ciphersuite: Ciphersuite, name: &str) -> Result<Group> {
        let group_id = uuid::Uuid::new_v4().into_bytes();
        self.create_group_in(ciphersuite, &group_id)?;
        self.store.put_group(&group_id, Some(name), self.clock())?;
        self.find_group(&hex::encode(group_id))
    }

    /// The groups that this device is in, in the order in which it joined them.
    pub fn groups(&self) -> Result<Vec<Group>> {
        let group = |row: GroupRow| {
            let group = self.load_group(&row.group_id)?;
            let (id, state) = (hex::encode(&row.group_id), GroupState::of(&row));
            // Any member may have chosen the name, and it is shown on terminals.
            let name = row.name.map(|name| clean(&name)).filter(|name| !name.is_empty());
            Ok(Group {
                name: name.unwrap_or_else(|| id.clone()),
                id,
                epoch: group.epoch().as_u64(),
                members: group.members().count(),
                state,
                group_id: row.group_id,
            })
        };
        self.store.groups()?.into_iter().map(group).collect()
    }

    /// The group of this name, or whose id in hex begins so. Others choose names and ids: where one group has the name
    /// and another the id, nobody knows which is meant, and only a whole id tells for sure.
    pub fn find_group(&self, name: &str) -> Result<Group> {
        let mut groups = self.groups()?;
        if let Some(whole) = groups.iter().find(|group| group.id == name && name.len() >= WHOLE_ID) {
            return Ok(whole.clone());
        }
        groups.retain(|group| group.name == name || name.len() >= 4 && group.id.starts_with(name));
        // A group that was renewed has the name of the one that took its place.
        if groups.iter().any(|group| group.state != GroupState::ReadOnly) {
            groups.retain(|group| group.state != GroupState::ReadOnly);
        }
        match groups.as_slice() {
            [] => Err(Error::UnknownGroup(name.to_owned())),
            [one] => Ok(one.clone()),
            several => Err(Error::AmbiguousGroup {
                name: name.to_owned(),
                ids: several.iter().map(|group| group.id.clone()).collect(),
            }),
        }
    }

    /// Makes a group with this device as its only member.
    pub fn create_group(&self, group_id: &[u8]) -> Result<MlsGroup> {
        self.create_group_in(self.identity.ciphersuites().first().copied().unwrap_or(CIPHERSUITE), group_id)
    }

    fn create_group_in(&self, ciphersuite: Ciphersuite, group_id: &[u8]) -> Result<MlsGroup> {
        let now = u64::try_from(self.connection.now().as_second()).unwrap_or(0);
        let config = MlsGroupCreateConfig::builder()
            .ciphersuite(ciphersuite)
            .max_past_epochs(PAST_EPOCHS)
            .use_ratchet_tree_extension(true)
            .lifetime(Lifetime::init(now.saturating_sub(60 * 60), now.saturating_add(LEAF_LIFETIME)))
            .build();
        self.store.transaction(|| {
            let group = MlsGroup::new_with_group_id(
                &self.store.provider(),
                self.identity.signer(ciphersuite)?,
                &config,
                GroupId::from_slice(group_id),
                self.identity.credential(ciphersuite)?,
            )
            .map_err(|error| Error::mls("create the group")(error.into()))?;
            self.proof(&group)?;
            Ok(group)
        })
    }

    /// Loads a group that this device created or joined.
    pub fn load_group(&self, group_id: &[u8]) -> Result<MlsGroup> {
        MlsGroup::load(self.store.provider().storage(), &GroupId::from_slice(group_id))
            .map_err(Error::storage("read the group"))?
            .ok_or_else(|| {
                // An application's own id may be a word.
                let name = String::from_utf8(group_id.to_vec());
                Error::UnknownGroup(name.unwrap_or_else(|_| hex::encode(group_id)))
            })
    }

    /// Adds all of a user's devices to a group whose messages the application delivers by itself: reserves a KeyPackage
    /// of each, commits, and spends them. On an error the group is as it was and nothing was handed out; what was
    /// reserved and not spent is released.
    ///
    /// The Commit is merged here once the KeyPackages are spent, so the caller is the one who orders the group's
    /// Commits. Where the server delivers, [`MlsMembership::invite`] does all of it.
    pub async fn prepare_invitation(&self, group: &mut MlsGroup, user: &UserName) -> Result<Invitation> {
        let api = self.connection.api();
        let group_id = Base64Bytes(group.group_id().to_vec());
        let request = ReserveRequest {
            ciphersuite: Some(group.ciphersuite().into()),
            group_id: Some(group_id.clone()),
            ..ReserveRequest::of(user.clone())
        };
        let (answer, _) = self.reserve(&request).await?;
        let outcome = match self.stage(group, &answer.reservations) {
            Ok(messages) => spend(api, &answer.reservations, &group_id).await.map(|()| messages),
            Err(error) => Err(error),
        };
        match outcome {
            Ok((commit, welcome)) => {
                self.merge(group)?;
                Ok(Invitation { welcome, commit, added: answer.reservations, missing: answer.missing })
            }
            Err(error) => {
                release(api, &answer.reservations).await;
                self.clear(group)?;
                Err(error)
            }
        }
    }

    /// Commits the additions, and leaves the Commit pending. Answers the Commit and the Welcome, encoded.
    fn stage(&self, group: &mut MlsGroup, reservations: &[Reservation]) -> Result<(Vec<u8>, Vec<u8>)> {
        let provider = self.store.provider();
        let key_packages = reservations
            .iter()
            .map(|reservation| read_key_package(reservation, &provider))
            .collect::<Result<Vec<_>>>()?;
        let signer = self.identity.signer_in(self.store, group)?;
        self.store.transaction(|| {
            let (commit, welcome, _) = group
                .add_members(&provider, &signer, &key_packages)
                .map_err(|error| Error::mls("add the devices to the group")(error.into()))?;
            Ok((encode(&commit)?, encode(&welcome)?))
        })
    }

    fn merge(&self, group: &mut MlsGroup) -> Result<()> {
        self.store.transaction(|| {
            group
                .merge_pending_commit(&self.store.provider())
                .map_err(|error| Error::mls("merge the Commit")(error.into()))
        })
    }

    pub(super) fn clear(&self, group: &mut MlsGroup) -> Result<()> {
        group.clear_pending_commit(self.store.provider().storage()).map_err(Error::storage("clear the pending Commit"))
    }

    /// Joins a group from the `MLSMessage` with a Welcome, if its members are who their leaves say they are. In one
    /// transaction with it, the keys and the metadata of the KeyPackage that it uses are deleted; a last resort stays. On
    /// an error everything is as it was.
    pub async fn join(&self, welcome: &[u8]) -> Result<MlsGroup> {
        let mut answers = Answers::default();
        loop {
            match self.store.transaction(|| self.join_within(welcome, None, &answers)) {
                Err(Error::Unchecked { leaves }) => self.ask(&leaves, &mut answers).await?,
                outcome => return outcome.map(|joined| joined.group),
            }
        }
    }

    /// Checks what an application that delivers by itself got from [`MlsGroup::process_message`], before it merges a
    /// Commit or keeps a proposal: members that enter or change their key are who their leaves say they are. Answers what
    /// people should know of them. [`Error::WrongIdentity`] is final; any other error says that there is no answer for now.
    pub async fn check_message(&self, group: &MlsGroup, message: &ProcessedMessage) -> Result<Vec<Notice>> {
        let claims = match message.content() {
            ProcessedMessageContent::StagedCommitMessage(commit) => {
                Claims::of_commit(group, message.sender(), commit)?.0
            }
            ProcessedMessageContent::ProposalMessage(proposal) => {
                Claims::of_proposal(group, message.sender(), proposal.proposal())?
            }
            _ => return Ok(Vec::new()),
        };
        let (mut answers, now) = (Answers::default(), self.clock());
        loop {
            match self.store.transaction(|| claims.accept(self.store, &answers, (now, now))) {
                Err(Error::Unchecked { leaves }) => self.ask(&leaves, &mut answers).await?,
                outcome => return outcome,
            }
        }
    }

    /// What the identity check knows of leaves: that of the application, or the server's directory.
    pub(super) async fn check_identities(&self, leaves: &[LeafIdentity]) -> Result<Vec<Standing>> {
        self.connection.identity_check(self.own_name()).check(leaves).await
    }

    /// Joins a group within a transaction. Where `inviters` are given, only by somebody who signs with one of these keys.
    pub(super) fn join_within(
        &self,
        welcome: &[u8],
        inviters: Option<&BTreeSet<Vec<u8>>>,
        answers: &Answers,
    ) -> Result<JoinedGroup> {
        let welcome = read_welcome(welcome)?;
        let refs: Vec<KeyPackageRef> =
            welcome.secrets().iter().map(|secrets| secrets.new_member().as_slice().to_vec().into()).collect();
        let config =
            MlsGroupJoinConfig::builder().use_ratchet_tree_extension(true).max_past_epochs(PAST_EPOCHS).build();
        let (provider, pool) = (self.store.provider(), self.connection.pool());
        let failed = |cause: Cause| Error::mls("join the group from this Welcome")(cause);
        let staged = StagedWelcome::build_from_welcome(&provider, &config, welcome)
            .map_err(|error| failed(error.into()))?
            // Members that joined long ago and never updated have leaves past their lifetime, and are members.
            .skip_lifetime_validation()
            .build()
            .map_err(|error| failed(error.into()))?;
        let inviter = staged.welcome_sender().map_err(|error| failed(error.into()))?;
        let inviter = LeafIdentity {
            credential: inviter.credential().clone(),
            signature_key: inviter.signature_key().as_slice().to_vec(),
            ciphersuite: staged.group_context().ciphersuite(),
        };
        if inviters.is_some_and(|known| !known.contains(&inviter.signature_key)) {
            return Err(failed(
                "the inviter was not a member of the group in the last epoch that this device knows".into(),
            ));
        }
        // The tree may be old, and its keys, too: no time is asked for.
        let now = self.clock();
        let notices = Claims::of_welcome(&staged).accept(self.store, answers, (now, now))?;
        let group = staged.into_group(&provider).map_err(|error| failed(error.into()))?;
        self.proof(&group)?;
        for keypackage_ref in &refs {
            // OpenMLS has deleted the keys of the one that it used, unless it is a last resort.
            if !pool.has_keys(keypackage_ref)? {
                self.store.delete_pool_metadata(keypackage_ref)?;
            }
        }
        Ok(JoinedGroup { group, inviter, notices })
    }
}

/// What others wrote, without what a terminal would obey.
pub(crate) fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

fn read_welcome(bytes: &[u8]) -> Result<Welcome> {
    let refused = |cause: Cause| Error::mls("read the Welcome")(cause);
    match decode(bytes).map_err(|error| refused(error.into()))?.extract() {
        MlsMessageBodyIn::Welcome(welcome) => Ok(welcome),
        _ => Err(refused("this MLSMessage is no Welcome".into())),
    }
}

pub(super) fn encode(message: &MlsMessageOut) -> Result<Vec<u8>> {
    message.tls_serialize_detached().map_err(|error| Error::mls("encode a message")(error.into()))
}

async fn spend(api: &ApiClient, reservations: &[Reservation], group_id: &Base64Bytes) -> Result<()> {
    for reservation in reservations {
        let request = SpendRequest { reservation_id: reservation.reservation_id, group_id: group_id.clone() };
        api.spend_key_package(&request).await?;
    }
    Ok(())
}

/// Gives reservations back. What cannot be released was spent, or lapses by itself.
pub(super) async fn release(api: &ApiClient, reservations: &[Reservation]) {
    for reservation in reservations {
        let reservation_id = reservation.reservation_id;
        if let Err(error) = api.release_key_package(&ReleaseRequest { reservation_id }).await {
            warn!(%reservation_id, %error, "could not release a reservation");
        }
    }
}

/// An `MLSMessage` from exactly these bytes. By the reader, since `tls_deserialize_exact_bytes` panics on truncated
/// vectors in builds with debug assertions.
pub(super) fn decode(bytes: &[u8]) -> std::result::Result<MlsMessageIn, tls_codec::Error> {
    let mut rest = bytes;
    let message = MlsMessageIn::tls_deserialize(&mut rest)?;
    if rest.is_empty() { Ok(message) } else { Err(tls_codec::Error::TrailingData) }
}

#[cfg(test)]
mod tests;
