//! The rules for leaves that enter a group: which ones are checked, and which ones are accepted.

use std::collections::{HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::DeviceOf;
use openmls::prelude::{
    Ciphersuite, Credential, LeafNode, LeafNodeIndex, MlsGroup, Proposal, Sender, StagedCommit, StagedWelcome,
    tls_codec::Serialize as _,
};

use super::{Notice, Standing};
use crate::{
    error::{Error, Result},
    leaf_identity::{LeafIdentity, credential_name},
    storage::LocalStore,
};

/// The longest TTL of a reservation. For this long after a change of its key, a device may still be added with its
/// previous key.
const LONGEST_RESERVATION: SignedDuration = SignedDuration::from_secs(600);

/// How a leaf enters a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// It is in the tree of a Welcome. Its key may be an older one.
    InTree,
    /// Another member adds or proposes it. Its key was current when the KeyPackage was reserved.
    Proposed,
    /// Its own device commits it. Its key is current.
    Committed,
}

/// A leaf that enters a group.
#[derive(Clone, Debug)]
pub(crate) struct NewLeaf {
    leaf: LeafIdentity,
    entry: Entry,
    /// Whether it replaces a leaf with another key.
    replaces: bool,
}

/// The answers of an identity check, by leaf.
#[derive(Debug, Default)]
pub(crate) struct Standings(HashMap<(Key, Option<DeviceOf>), Standing>);

/// Credential, ciphersuite and signature key of a leaf.
type Key = (Vec<u8>, u16, Vec<u8>);

impl Standings {
    /// Adds the answers of an identity check.
    pub(crate) fn extend(&mut self, leaves: &[LeafIdentity], standings: Vec<Standing>) -> Result<()> {
        if leaves.len() != standings.len() {
            let found = format!("an identity check answered {} of {} leaves", standings.len(), leaves.len());
            return Err(Error::Config(found));
        }
        for (leaf, standing) in leaves.iter().zip(standings) {
            self.0.insert((key(leaf)?, leaf.reserved_for.clone()), standing);
        }
        Ok(())
    }

    pub(crate) fn of(&self, leaf: &LeafIdentity) -> Result<Option<&Standing>> {
        Ok(self.0.get(&(key(leaf)?, leaf.reserved_for.clone())))
    }
}

fn key(leaf: &LeafIdentity) -> Result<Key> {
    Ok((credential_bytes(&leaf.credential)?, leaf.ciphersuite.into(), leaf.signature_key.clone()))
}

fn credential_bytes(credential: &Credential) -> Result<Vec<u8>> {
    credential.tls_serialize_detached().map_err(|error| Error::mls("encode a credential")(error.into()))
}

/// The members that a Commit adds and removes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemberChanges {
    pub(crate) added: Vec<String>,
    pub(crate) removed: Vec<String>,
    /// The members whose leaf is replaced by another one.
    pub(crate) updated: Vec<String>,
}

impl MemberChanges {
    /// Moves the members that are removed and added again.
    fn merge_updates(&mut self) {
        let (updated, removed) =
            std::mem::take(&mut self.removed).into_iter().partition(|member| self.added.contains(member));
        (self.updated, self.removed) = (updated, removed);
        self.added.retain(|member| !self.updated.contains(member));
    }
}

/// The leaves that one message brings into a group.
#[derive(Clone, Debug)]
pub(crate) struct NewLeaves {
    ciphersuite: Ciphersuite,
    leaves: Vec<NewLeaf>,
}

impl NewLeaves {
    fn new(ciphersuite: Ciphersuite) -> Self {
        Self { ciphersuite, leaves: Vec::new() }
    }

    fn add(&mut self, credential: &Credential, signature_key: &[u8], entry: Entry) {
        let leaf = LeafIdentity {
            credential: credential.clone(),
            signature_key: signature_key.to_vec(),
            ciphersuite: self.ciphersuite,
            reserved_for: None,
        };
        self.leaves.push(NewLeaf { leaf, entry, replaces: false });
    }

    fn add_leaf(&mut self, leaf: &LeafNode, entry: Entry) {
        self.add(leaf.credential(), leaf.signature_key().as_slice(), entry);
    }

    /// Adds the new leaf of a member. Its identity must stay the same (RFC 9420, section 5.3.1), and a new key is
    /// checked.
    fn replace(&mut self, before: &LeafNode, after: &LeafNode, entry: Entry) -> Result<()> {
        if before.credential() != after.credential() {
            let why = format!("it changes its identity to {:?}", credential_name(after.credential()));
            return Err(Error::WrongIdentity { member: credential_name(before.credential()), why });
        }
        if before.signature_key() != after.signature_key() {
            self.add_leaf(after, entry);
            if let Some(new) = self.leaves.last_mut() {
                new.replaces = true;
            }
        }
        Ok(())
    }

    /// The leaves of reserved KeyPackages.
    pub(crate) fn of_reserved(leaves: &[LeafIdentity], ciphersuite: Ciphersuite) -> Self {
        let new = |leaf: &LeafIdentity| NewLeaf { leaf: leaf.clone(), entry: Entry::Proposed, replaces: false };
        Self { ciphersuite, leaves: leaves.iter().map(new).collect() }
    }

    /// All leaves of the group of a Welcome, except this device's own.
    pub(crate) fn of_welcome(staged: &StagedWelcome) -> Self {
        let mut leaves = Self::new(staged.group_context().ciphersuite());
        for member in staged.members().filter(|member| member.index != staged.own_leaf_index()) {
            leaves.add(&member.credential, &member.signature_key, Entry::InTree);
        }
        leaves
    }

    /// All leaves of a group that this device comes back into, except its own.
    pub(crate) fn of_tree(group: &MlsGroup) -> Self {
        let mut leaves = Self::new(group.ciphersuite());
        for member in group.members().filter(|member| member.index != group.own_leaf_index()) {
            leaves.add(&member.credential, &member.signature_key, Entry::InTree);
        }
        leaves
    }

    /// The leaf of a proposal, if it has one.
    pub(crate) fn of_proposal(group: &MlsGroup, sender: &Sender, proposal: &Proposal) -> Result<Self> {
        let mut leaves = Self::new(group.ciphersuite());
        leaves.add_proposal(group, sender, proposal)?;
        Ok(leaves)
    }

    fn add_proposal(&mut self, group: &MlsGroup, sender: &Sender, proposal: &Proposal) -> Result<()> {
        match (proposal, sender) {
            (Proposal::Add(add), _) => self.add_leaf(add.key_package().leaf_node(), Entry::Proposed),
            (Proposal::Update(update), Sender::Member(sender)) => {
                self.replace(leaf(group, *sender)?, update.leaf_node(), Entry::Proposed)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The leaves of a Commit, and the members that it adds and removes.
    pub(crate) fn of_commit(group: &MlsGroup, sender: &Sender, commit: &StagedCommit) -> Result<(Self, MemberChanges)> {
        let (mut leaves, mut changes) = (Self::new(group.ciphersuite()), MemberChanges::default());
        for queued in commit.queued_proposals() {
            leaves.add_proposal(group, queued.sender(), queued.proposal())?;
            match queued.proposal() {
                Proposal::Add(add) => changes.added.push(credential_name(add.key_package().leaf_node().credential())),
                Proposal::Remove(remove) => {
                    changes.removed.push(credential_name(leaf(group, remove.removed())?.credential()));
                }
                _ => {}
            }
        }
        match (sender, commit.update_path_leaf_node()) {
            (Sender::Member(committer), Some(after)) => {
                leaves.replace(leaf(group, *committer)?, after, Entry::Committed)?;
            }
            (Sender::NewMemberCommit, Some(joiner)) => {
                leaves.join(group, (joiner, commit), &mut changes)?;
            }
            _ => {}
        }
        changes.merge_updates();
        Ok((leaves, changes))
    }

    /// Adds the leaf of a device that comes back by an external Commit (RFC 9420, section 12.4.3.2). It must replace its
    /// own leaf with the same signature key: so nobody new comes in, whatever the server says of keys.
    fn join(
        &mut self,
        group: &MlsGroup,
        (joiner, commit): (&LeafNode, &StagedCommit),
        changes: &mut MemberChanges,
    ) -> Result<()> {
        let name = credential_name(joiner.credential());
        let refused = |why: String| Err(Error::WrongIdentity { member: name.clone(), why });
        let mut removed = commit.remove_proposals().map(|one| leaf(group, one.remove_proposal().removed()));
        let Some(before) = removed.next().transpose()? else {
            return refused("it joins by an external Commit and was not in the group".to_owned());
        };
        let is_its_own = before.credential() == joiner.credential() && before.signature_key() == joiner.signature_key();
        if !is_its_own || removed.next().is_some() {
            let others = changes.removed.join(", ");
            return refused(format!(
                "it joins by an external Commit and removes {others}, with another key or identity"
            ));
        }
        self.add_leaf(joiner, Entry::Committed);
        changes.added.push(name);
        Ok(())
    }

    /// Accepts the leaves if the identity check allows it, remembers their keys, and returns notices for the user.
    /// Fails with [`Error::Unchecked`] if there is no answer about a leaf yet, and with [`Error::WrongIdentity`] if a
    /// leaf does not belong to the device that it names.
    pub(crate) fn accept(
        &self,
        store: &LocalStore,
        standings: &Standings,
        (sent_at, now): (Timestamp, Timestamp),
    ) -> Result<Vec<Notice>> {
        let mut unchecked = Vec::new();
        for new in &self.leaves {
            if standings.of(&new.leaf)?.is_none() && !new.is_remembered(store)? && !unchecked.contains(&new.leaf) {
                unchecked.push(new.leaf.clone());
            }
        }
        if !unchecked.is_empty() {
            return Err(Error::Unchecked { leaves: unchecked });
        }
        let (mut notices, mut accepted) = (Vec::new(), HashSet::new());
        for new in &self.leaves {
            let (identity, ciphersuite, signature_key) = key(&new.leaf)?;
            let known = store.signature_keys_of(&identity, ciphersuite)?;
            // Without an answer, the key was accepted before.
            if let Some(standing) = standings.of(&new.leaf)? {
                new.check_standing(standing, sent_at)?;
                // Two leaves of one device in a tree are not a change of its key.
                let is_seen = known.is_empty() || known.contains(&signature_key) || accepted.contains(&identity);
                let is_new = new.replaces || !is_seen;
                notices.extend(new.notice(standing, is_new));
            }
            store.record_signature_key((&identity, ciphersuite, &signature_key), now)?;
            accepted.insert(identity);
        }
        Ok(notices)
    }
}

impl NewLeaf {
    /// Whether it is in the tree of a Welcome with a key that was accepted before. Added leaves and changed keys are
    /// checked each time, because the device may have changed its key since.
    fn is_remembered(&self, store: &LocalStore) -> Result<bool> {
        let (identity, ciphersuite, signature_key) = key(&self.leaf)?;
        Ok(self.entry == Entry::InTree && store.signature_keys_of(&identity, ciphersuite)?.contains(&signature_key))
    }

    /// Whether a leaf with this answer may enter the group. `sent_at` is a time of the server, like the times in its
    /// directory.
    fn check_standing(&self, standing: &Standing, sent_at: Timestamp) -> Result<()> {
        let (ended, how) = match standing {
            Standing::Current { .. } | Standing::Unverified => return Ok(()),
            Standing::Unknown { why } => return Err(self.refused(why.clone())),
            Standing::Previous { until } => (*until, "the device has had another signature key since"),
            Standing::Removed { at } => (*at, "the device was removed at"),
        };
        let late = match self.entry {
            Entry::InTree => return Ok(()),
            Entry::Proposed => LONGEST_RESERVATION,
            Entry::Committed => SignedDuration::ZERO,
        };
        if sent_at > ended.saturating_add(late).unwrap_or(Timestamp::MAX) {
            return Err(self.refused(format!("{how} {ended}")));
        }
        Ok(())
    }

    fn refused(&self, why: String) -> Error {
        Error::WrongIdentity { member: self.leaf.name(), why }
    }

    /// The notice for the user, if any. `is_new`: the device had another key before.
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

/// Checks that a message's credential names the device that the server received it from.
pub(crate) fn check_sender(credential: &Credential, from: &DeviceOf, ciphersuite: Ciphersuite) -> Result<()> {
    let leaf =
        LeafIdentity { credential: credential.clone(), signature_key: Vec::new(), ciphersuite, reserved_for: None };
    match leaf.device() {
        Some(device) if device != *from => {
            Err(Error::WrongIdentity { member: leaf.name(), why: format!("it was sent by {from}") })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use openmls::prelude::BasicCredential;

    use super::*;
    use crate::pool::CIPHERSUITE;

    const NOW: &str = "2030-01-01T00:00:00Z";

    fn leaf(key: u8) -> LeafIdentity {
        let credential = BasicCredential::new(b"alice/laptop".to_vec()).into();
        LeafIdentity { credential, signature_key: vec![key; 32], ciphersuite: CIPHERSUITE, reserved_for: None }
    }

    fn accept(store: &LocalStore, entry: Entry, key: u8, standing: &Standing) -> Result<Vec<Notice>> {
        let leaves =
            NewLeaves { ciphersuite: CIPHERSUITE, leaves: vec![NewLeaf { leaf: leaf(key), entry, replaces: false }] };
        let mut standings = Standings::default();
        standings.extend(&[leaf(key)], vec![standing.clone()])?;
        let now = NOW.parse().unwrap();
        leaves.accept(store, &standings, (now, now))
    }

    #[test]
    fn a_leaf_that_enters_has_the_current_key_and_one_in_a_tree_may_have_an_older_one() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
        let now: Timestamp = NOW.parse().unwrap();
        let ended = |seconds| now - SignedDuration::from_secs(seconds);
        // A reservation may be committed for ten minutes; a device's own Commit needs its current key.
        let cases = [
            (Entry::InTree, 1_000_000, true),
            (Entry::Proposed, 600, true),
            (Entry::Proposed, 601, false),
            (Entry::Committed, 0, true),
            (Entry::Committed, 1, false),
        ];
        for (entry, seconds, is_accepted) in cases {
            for standing in [Standing::Previous { until: ended(seconds) }, Standing::Removed { at: ended(seconds) }] {
                let outcome = accept(&store, entry, 1, &standing);
                assert_eq!(outcome.is_ok(), is_accepted, "{entry:?} {seconds}: {outcome:?}");
                assert!(is_accepted || matches!(outcome, Err(Error::WrongIdentity { .. })));
            }
        }
        for entry in [Entry::InTree, Entry::Proposed, Entry::Committed] {
            assert_eq!(accept(&store, entry, 1, &Standing::Current { since: None }).unwrap(), []);
            let unknown = accept(&store, entry, 2, &Standing::Unknown { why: "no".to_owned() });
            assert!(matches!(unknown, Err(Error::WrongIdentity { .. })), "{entry:?}: {unknown:?}");
        }
    }

    #[test]
    fn a_key_that_was_accepted_is_remembered_in_a_tree_and_asked_about_where_it_enters() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
        let now = NOW.parse().unwrap();
        let ask = |entry| {
            let leaves =
                NewLeaves { ciphersuite: CIPHERSUITE, leaves: vec![NewLeaf { leaf: leaf(1), entry, replaces: false }] };
            leaves.accept(&store, &Standings::default(), (now, now))
        };
        assert!(matches!(ask(Entry::InTree), Err(Error::Unchecked { leaves }) if leaves == [leaf(1)]));
        accept(&store, Entry::InTree, 1, &Standing::Current { since: None }).unwrap();
        assert_eq!(ask(Entry::InTree).unwrap(), []);
        for entry in [Entry::Proposed, Entry::Committed] {
            assert!(matches!(ask(entry), Err(Error::Unchecked { .. })), "{entry:?}");
        }
    }

    #[test]
    fn a_device_with_another_key_than_before_is_told_once() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path()).unwrap();
        let since = Some(NOW.parse().unwrap());
        let current = Standing::Current { since };
        assert_eq!(accept(&store, Entry::Proposed, 1, &current).unwrap(), []);
        let told = accept(&store, Entry::Proposed, 2, &current).unwrap();
        assert_eq!(told, [Notice::NewSignatureKey { member: "alice/laptop".to_owned(), since }]);
        assert_eq!(accept(&store, Entry::Proposed, 2, &current).unwrap(), []);
    }
}
