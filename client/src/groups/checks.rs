//! Asks the identity check about the leaves that a message brings into a group.

use openmls::prelude::{MlsGroup, ProcessedMessage, ProcessedMessageContent};

use super::membership::MlsMembership;
use crate::{
    error::{Error, Result},
    identity_check::{NewLeaves, Notice, Standing, Standings},
    leaf_identity::LeafIdentity,
};

impl MlsMembership<'_> {
    /// For an application that delivers messages itself: checks the result of [`MlsGroup::process_message`] before the
    /// application merges a Commit or stores a proposal. Members that enter or change their key must be the devices
    /// that their leaves name. Returns notices for the user. [`Error::WrongIdentity`] is final; after any other error,
    /// the check may be repeated later.
    pub async fn check_message(&self, group: &MlsGroup, message: &ProcessedMessage) -> Result<Vec<Notice>> {
        let new_leaves = match message.content() {
            ProcessedMessageContent::StagedCommitMessage(commit) => {
                NewLeaves::of_commit(group, message.sender(), commit)?.0
            }
            ProcessedMessageContent::ProposalMessage(proposal) => {
                NewLeaves::of_proposal(group, message.sender(), proposal.proposal())?
            }
            _ => return Ok(Vec::new()),
        };
        let (mut standings, now) = (Standings::default(), self.now());
        loop {
            match self.store.transaction(|| new_leaves.accept(self.store, &standings, (now, now))) {
                Err(Error::Unchecked { leaves }) => self.check_leaves(&leaves, &mut standings).await?,
                outcome => return outcome,
            }
        }
    }

    /// Asks the identity check about leaves, and adds its answers to `standings`.
    pub(super) async fn check_leaves(&self, leaves: &[LeafIdentity], standings: &mut Standings) -> Result<()> {
        let answers = self.check_identities(leaves).await?;
        standings.extend(leaves, answers)
    }

    /// The answers of the identity check: the application's, or the server's directory.
    pub(super) async fn check_identities(&self, leaves: &[LeafIdentity]) -> Result<Vec<Standing>> {
        self.connection.identity_check(self.own_device()).check(leaves).await
    }
}
