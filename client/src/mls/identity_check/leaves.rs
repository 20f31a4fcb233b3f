//! The rules for leaves: which of them are checked, and what has to be known of them.

use std::collections::{HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::DeviceOf;
use openmls::prelude::{
    Ciphersuite, Credential, LeafNode, LeafNodeIndex, MlsGroup, Proposal, Sender, StagedCommit, StagedWelcome,
    tls_codec::Serialize as _,
};

use super::{LeafIdentity, Standing, name_of};
use crate::{
    error::{Error, Result},
    mls::Notice,
    storage::LocalStore,
};

/// How long an adder may hold a KeyPackage at most: so long after a device has changed its key, a Commit may still add it
/// by the key before.
const LONGEST_RESERVATION: SignedDuration = SignedDuration::from_secs(600);

/// How a leaf enters a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mls) enum Change {
    /// It is in the tree of a Welcome: its key may be an older one.
    InTree,
    /// Somebody adds it, or proposes it: its key was current when the KeyPackage was reserved.
    Proposed,
    /// Its own device commits it: its key is current.
    Committed,
}

/// A leaf that enters a group.
#[derive(Clone, Debug)]
pub(in crate::mls) struct Claim {
    leaf: LeafIdentity,
    change: Change,
    /// Whether it takes the place of a leaf with another key.
    replaces: bool,
}

/// What was asked and answered about leaves.
#[derive(Debug, Default)]
pub(in crate::mls) struct Answers(HashMap<Key, Standing>);

/// Credential, ciphersuite and signature key of a leaf.
type Key = (Vec<u8>, u16, Vec<u8>);

impl Answers {
    /// Takes over what an identity check answered.
    pub(in crate::mls) fn extend(&mut self, leaves: &[LeafIdentity], standings: Vec<Standing>) -> Result<()> {
        if leaves.len() != standings.len() {
            let found = format!("an identity check answered {} of {} leaves", standings.len(), leaves.len());
            return Err(Error::Config(found));
        }
        for (leaf, standing) in leaves.iter().zip(standings) {
            self.0.insert(key(leaf)?, standing);
        }
        Ok(())
    }

    pub(in crate::mls) fn of(&self, leaf: &LeafIdentity) -> Result<Option<&Standing>> {
        Ok(self.0.get(&key(leaf)?))
    }
}

fn key(leaf: &LeafIdentity) -> Result<Key> {
    Ok((credential_bytes(&leaf.credential)?, leaf.ciphersuite.into(), leaf.signature_key.clone()))
}

fn credential_bytes(credential: &Credential) -> Result<Vec<u8>> {
    credential.tls_serialize_detached().map_err(|error| Error::mls("encode a credential")(error.into()))
}

/// Who was added and removed by a Commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::mls) struct MemberChanges {
    pub(in crate::mls) added: Vec<String>,
    pub(in crate::mls) removed: Vec<String>,
}

/// The leaves that enter a group at once.
#[derive(Clone, Debug)]
pub(in crate::mls) struct Claims {
    ciphersuite: Ciphersuite,
    claims: Vec<Claim>,
}

impl Claims {
    fn new(ciphersuite: Ciphersuite) -> Self {
        Self { ciphersuite, claims: Vec::new() }
    }

    fn add(&mut self, credential: &Credential, signature_key: &[u8], change: Change) {
        let leaf = LeafIdentity {
            credential: credential.clone(),
            signature_key: signature_key.to_vec(),
            ciphersuite: self.ciphersuite,
        };
        self.claims.push(Claim { leaf, change, replaces: false });
    }

    fn add_leaf(&mut self, leaf: &LeafNode, change: Change) {
        self.add(leaf.credential(), leaf.signature_key().as_slice(), change);
    }

    /// A new leaf in the place of one that there is: the identity stays (RFC 9420, section 5.3.1), and a new key is checked.
    fn replace(&mut self, before: &LeafNode, after: &LeafNode, change: Change) -> Result<()> {
        if before.credential() != after.credential() {
            let why = format!("it changes its identity to {:?}", name_of(after.credential()));
            return Err(Error::WrongIdentity { member: name_of(before.credential()), why });
        }
        if before.signature_key() != after.signature_key() {
            self.add_leaf(after, change);
            if let Some(claim) = self.claims.last_mut() {
                claim.replaces = true;
            }
        }
        Ok(())
    }

    /// The leaves of reserved KeyPackages.
    pub(in crate::mls) fn of_reserved(leaves: &[LeafIdentity], ciphersuite: Ciphersuite) -> Self {
        let claim = |leaf: &LeafIdentity| Claim { leaf: leaf.clone(), change: Change::Proposed, replaces: false };
        Self { ciphersuite, claims: leaves.iter().map(claim).collect() }
    }

    /// All leaves of the group that a Welcome leads into, but for this device's own.
    pub(in crate::mls) fn of_welcome(staged: &StagedWelcome) -> Self {
        let mut claims = Self::new(staged.group_context().ciphersuite());
        for member in staged.members().filter(|member| member.index != staged.own_leaf_index()) {
            claims.add(&member.credential, &member.signature_key, Change::InTree);
        }
        claims
    }

    /// The leaf that a proposal brings.
    pub(in crate::mls) fn of_proposal(group: &MlsGroup, sender: &Sender, proposal: &Proposal) -> Result<Self> {
        let mut claims = Self::new(group.ciphersuite());
        claims.add_proposal(group, sender, proposal)?;
        Ok(claims)
    }

    fn add_proposal(&mut self, group: &MlsGroup, sender: &Sender, proposal: &Proposal) -> Result<()> {
        match (proposal, sender) {
            (Proposal::Add(add), _) => self.add_leaf(add.key_package().leaf_node(), Change::Proposed),
            (Proposal::Update(update), Sender::Member(sender)) => {
                self.replace(leaf(group, *sender)?, update.leaf_node(), Change::Proposed)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The leaves that a Commit brings, and who is added and removed.
    pub(in crate::mls) fn of_commit(
        group: &MlsGroup,
        sender: &Sender,
        commit: &StagedCommit,
    ) -> Result<(Self, MemberChanges)> {
        let (mut claims, mut changes) = (Self::new(group.ciphersuite()), MemberChanges::default());
        for queued in commit.queued_proposals() {
            claims.add_proposal(group, queued.sender(), queued.proposal())?;
            match queued.proposal() {
                Proposal::Add(add) => changes.added.push(name_of(add.key_package().leaf_node().credential())),
                Proposal::Remove(remove) => {
                    changes.removed.push(name_of(leaf(group, remove.removed())?.credential()));
                }
                _ => {}
            }
        }
        match (sender, commit.update_path_leaf_node()) {
            (Sender::Member(committer), Some(after)) => {
                claims.replace(leaf(group, *committer)?, after, Change::Committed)?;
            }
            (Sender::NewMemberCommit, Some(joiner)) => {
                claims.join(joiner, &mut changes)?;
            }
            _ => {}
        }
        Ok((claims, changes))
    }

    /// The leaf of somebody who comes in by an external Commit, and who may take the place of their own leaf alone
    /// (RFC 9420, section 12.4.3.2).
    fn join(&mut self, joiner: &LeafNode, changes: &mut MemberChanges) -> Result<()> {
        let name = name_of(joiner.credential());
        if let Some(other) = changes.removed.iter().find(|removed| **removed != name) {
            let why = format!("it comes in by an external Commit and removes {other}");
            return Err(Error::WrongIdentity { member: name, why });
        }
        self.add_leaf(joiner, Change::Committed);
        changes.added.push(name);
        Ok(())
    }

    /// Accepts the leaves by what was answered about them, and remembers their keys. What is worth a word to people is
    /// answered. Where something was not asked yet, fails with [`Error::Unchecked`]; where a leaf is not whose it says it
    /// is, with [`Error::WrongIdentity`].
    pub(in crate::mls) fn accept(
        &self,
        store: &LocalStore,
        answers: &Answers,
        (sent_at, now): (Timestamp, Timestamp),
    ) -> Result<Vec<Notice>> {
        let mut unchecked = Vec::new();
        for claim in &self.claims {
            if answers.of(&claim.leaf)?.is_none() && !claim.is_remembered(store)? && !unchecked.contains(&claim.leaf) {
                unchecked.push(claim.leaf.clone());
            }
        }
        if !unchecked.is_empty() {
            return Err(Error::Unchecked { leaves: unchecked });
        }
        let (mut notices, mut accepted) = (Vec::new(), HashSet::new());
        for claim in &self.claims {
            let (identity, ciphersuite, signature_key) = key(&claim.leaf)?;
            let known = store.signature_keys_of(&identity, ciphersuite)?;
            // Of a leaf that was asked about; else its key is remembered.
            if let Some(standing) = answers.of(&claim.leaf)? {
                claim.stand(standing, sent_at)?;
                // Two leaves of one device in a tree are no change.
                let is_seen = known.is_empty() || known.contains(&signature_key) || accepted.contains(&identity);
                let is_new = claim.replaces || !is_seen;
                notices.extend(claim.notice(standing, is_new));
            }
            store.remember_signature_key((&identity, ciphersuite, &signature_key), now)?;
            accepted.insert(identity);
        }
        Ok(notices)
    }
}

impl Claim {
    /// Whether it is in a tree with a key that was accepted before. An added leaf and a changed key are asked about
    /// each time: the device may have changed its key since.
    fn is_remembered(&self, store: &LocalStore) -> Result<bool> {
        let (identity, ciphersuite, signature_key) = key(&self.leaf)?;
        Ok(self.change == Change::InTree && store.signature_keys_of(&identity, ciphersuite)?.contains(&signature_key))
    }

    /// Whether the leaf may enter with what is known of it. The time is the server's, as all that the directory says.
    fn stand(&self, standing: &Standing, sent_at: Timestamp) -> Result<()> {
        let (ended, how) = match standing {
            Standing::Current { .. } | Standing::Unverified => return Ok(()),
            Standing::Unknown { why } => return Err(self.refused(why.clone())),
            Standing::Previous { until } => (*until, "the device has had another signature key since"),
            Standing::Removed { at } => (*at, "the device was removed at"),
        };
        let late = match self.change {
            Change::InTree => return Ok(()),
            Change::Proposed => LONGEST_RESERVATION,
            Change::Committed => SignedDuration::ZERO,
        };
        if sent_at > ended.saturating_add(late).unwrap_or(Timestamp::MAX) {
            return Err(self.refused(format!("{how} {ended}")));
        }
        Ok(())
    }

    fn refused(&self, why: String) -> Error {
        Error::WrongIdentity { member: self.leaf.name(), why }
    }

    /// What people should know of the leaf. `is_new`: the device was seen with another key before.
    fn notice(&self, standing: &Standing, is_new: bool) -> Option<Notice> {
        let member = self.leaf.name();
        match *standing {
            Standing::Current { since } if is_new => Some(Notice::NewSignatureKey { member, since }),
            Standing::Unverified if is_new => Some(Notice::NewSignatureKey { member, since: None }),
            Standing::Previous { until } => Some(Notice::PreviousSignatureKey { member, until }),
            Standing::Removed { at } => Some(Notice::RemovedDevice { member, at }),
            _ => None,
        }
    }
}

fn leaf(group: &MlsGroup, index: LeafNodeIndex) -> Result<&LeafNode> {
    group
        .public_group()
        .leaf(index)
        .ok_or_else(|| Error::mls("find the sender's leaf")("there is no such leaf in the group".into()))
}

/// A message's credential is its envelope's sender: the server knows who has sent it.
pub(in crate::mls) fn check_sender(credential: &Credential, from: &DeviceOf, ciphersuite: Ciphersuite) -> Result<()> {
    let leaf = LeafIdentity { credential: credential.clone(), signature_key: Vec::new(), ciphersuite };
    match leaf.device() {
        Some(device) if device != *from => Err(Error::WrongIdentity {
            member: leaf.name(),
            why: format!("it was sent by {}/{}", from.user, from.device),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use openmls::prelude::BasicCredential;

    use super::*;
    use crate::mls::CIPHERSUITE;

    const NOW: &str = "2030-01-01T00:00:00Z";

    fn leaf(key: u8) -> LeafIdentity {
        let credential = BasicCredential::new(b"alice/laptop".to_vec()).into();
        LeafIdentity { credential, signature_key: vec![key; 32], ciphersuite: CIPHERSUITE }
    }

    fn accept(store: &LocalStore, change: Change, key: u8, standing: &Standing) -> Result<Vec<Notice>> {
        let claims =
            Claims { ciphersuite: CIPHERSUITE, claims: vec![Claim { leaf: leaf(key), change, replaces: false }] };
        let mut answers = Answers::default();
        answers.extend(&[leaf(key)], vec![standing.clone()])?;
        let now = NOW.parse().unwrap();
        claims.accept(store, &answers, (now, now))
    }

    #[test]
    fn a_leaf_that_enters_has_the_current_key_and_one_in_a_tree_may_have_an_older_one() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
        let now: Timestamp = NOW.parse().unwrap();
        let ended = |seconds| now - SignedDuration::from_secs(seconds);
        // What is reserved may be committed for ten minutes more; what a device commits itself is of now.
        let cases = [
            (Change::InTree, 1_000_000, true),
            (Change::Proposed, 600, true),
            (Change::Proposed, 601, false),
            (Change::Committed, 0, true),
            (Change::Committed, 1, false),
        ];
        for (change, seconds, is_accepted) in cases {
            for standing in [Standing::Previous { until: ended(seconds) }, Standing::Removed { at: ended(seconds) }] {
                let outcome = accept(&store, change, 1, &standing);
                assert_eq!(outcome.is_ok(), is_accepted, "{change:?} {seconds}: {outcome:?}");
                assert!(is_accepted || matches!(outcome, Err(Error::WrongIdentity { .. })));
            }
        }
        for change in [Change::InTree, Change::Proposed, Change::Committed] {
            assert_eq!(accept(&store, change, 1, &Standing::Current { since: None }).unwrap(), []);
            let unknown = accept(&store, change, 2, &Standing::Unknown { why: "no".to_owned() });
            assert!(matches!(unknown, Err(Error::WrongIdentity { .. })), "{change:?}: {unknown:?}");
        }
    }

    #[test]
    fn a_key_that_was_accepted_is_remembered_in_a_tree_and_asked_about_where_it_enters() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
        let now = NOW.parse().unwrap();
        let ask = |change| {
            let claims =
                Claims { ciphersuite: CIPHERSUITE, claims: vec![Claim { leaf: leaf(1), change, replaces: false }] };
            claims.accept(&store, &Answers::default(), (now, now))
        };
        assert!(matches!(ask(Change::InTree), Err(Error::Unchecked { leaves }) if leaves == [leaf(1)]));
        accept(&store, Change::InTree, 1, &Standing::Current { since: None }).unwrap();
        assert_eq!(ask(Change::InTree).unwrap(), []);
        for change in [Change::Proposed, Change::Committed] {
            assert!(matches!(ask(change), Err(Error::Unchecked { .. })), "{change:?}");
        }
    }

    #[test]
    fn a_device_with_another_key_than_before_is_told_once() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
        let since = Some(NOW.parse().unwrap());
        let current = Standing::Current { since };
        assert_eq!(accept(&store, Change::Proposed, 1, &current).unwrap(), []);
        let told = accept(&store, Change::Proposed, 2, &current).unwrap();
        assert_eq!(told, [Notice::NewSignatureKey { member: "alice/laptop".to_owned(), since }]);
        assert_eq!(accept(&store, Change::Proposed, 2, &current).unwrap(), []);
    }
}
