//! Messages: out to the members of a group, and what came of those from this device's queue on the server.

use keypool_openapi::{Base64Bytes, DeviceOf, MessageRequest, Undelivered};
use openmls::prelude::{MlsGroup, Sender};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{
    GroupState, Incoming, MlsMembership,
    commits::{group_path, members_of, warn_of},
    membership::encode,
};
use crate::error::{Error, Result};

/// What travels inside of application messages.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Content {
    /// What somebody says.
    Text(String),
    /// How the group is called: the server never sees it.
    GroupName(String),
    /// The group, in hex, that this one has taken the place of.
    Renews(String),
}

impl MlsMembership<'_> {
    /// Sends a text to all other members of a group, in the epoch that the group is in by now. What comes meanwhile is
    /// answered by the next [`MlsMembership::receive`].
    ///
    /// Answers the devices that the server could not queue it for.
    pub async fn send(&self, group_id: &[u8], text: &str) -> Result<Vec<Undelivered>> {
        self.catch_up().await?;
        self.check_writable(group_id)?;
        // Nothing can be said while something is proposed (RFC 9420, section 12.4).
        self.commit_to_proposals(group_id).await?;
        self.send_content(group_id, &Content::Text(text.to_owned())).await
    }

    /// Tells the members of a group how it is called. What fails is told at the next addition.
    pub(super) async fn tell_name(&self, group_id: &[u8]) {
        let told = async {
            let row = self.store.groups()?.into_iter().find(|row| row.group_id == group_id);
            match row.and_then(|row| row.name) {
                Some(name) => self.send_content(group_id, &Content::GroupName(name)).await,
                None => Ok(Vec::new()),
            }
        };
        match told.await {
            Ok(undelivered) => warn_of(&undelivered),
            Err(error) => warn!(%error, "could not tell the group's name"),
        }
    }

    pub(super) async fn send_content(&self, group_id: &[u8], content: &Content) -> Result<Vec<Undelivered>> {
        let mut group = self.load_group(group_id)?;
        let recipients = self.others_in(&group);
        if recipients.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = serde_json::to_vec(content)
            .map_err(|error| Error::Damaged(format!("a message cannot be written: {error}")))?;
        let signer = self.identity.signer_in(self.store, &group)?;
        let message = self.store.transaction(|| {
            let message = group
                .create_message(&self.store.provider(), &signer, &bytes)
                .map_err(|error| Error::mls("encrypt the message")(error.into()))?;
            encode(&message)
        })?;
        self.post(group_id, message, recipients).await
    }

    async fn post(&self, group_id: &[u8], message: Vec<u8>, recipients: Vec<DeviceOf>) -> Result<Vec<Undelivered>> {
        let request = MessageRequest { message: Base64Bytes(message), recipients };
        Ok(self.connection.api().send_message(&group_path(group_id)?, &request).await?.undelivered)
    }

    /// Asks the others to remove this device from a group: a device cannot remove itself (RFC 9420, section 12.2). It is
    /// out when one of them has committed to that. A group without others is gone at once, and so is one that cannot be
    /// changed any more, or in which this device has asked for that before and nobody has done it.
    ///
    /// Answers the devices that the server could not queue it for.
    pub async fn leave(&self, group_id: &[u8]) -> Result<Vec<Undelivered>> {
        self.catch_up().await?;
        let mut group = self.load_group(group_id)?;
        let recipients = self.others_in(&group);
        // Nobody could let this device go from a group that cannot be changed.
        if recipients.is_empty() || self.state_of(group_id)? != GroupState::Active {
            self.forget_group(&mut group)?;
            return Ok(Vec::new());
        }
        let signer = self.identity.signer_in(self.store, &group)?;
        let own = Sender::Member(group.own_leaf_index());
        let has_asked = group.pending_proposals().any(|one| *one.sender() == own);
        let message = self.store.transaction(|| {
            let proposal = group
                .leave_group(&self.store.provider(), &signer)
                .map_err(|error| Error::mls("propose to leave the group")(error.into()))?;
            encode(&proposal)
        })?;
        let undelivered = self.post(group_id, message, recipients).await?;
        if has_asked {
            self.forget_group(&mut group)?;
        }
        Ok(undelivered)
    }

    /// Takes in what waits in this device's queue, and answers all that was not dealt with yet, the oldest first. Waits
    /// so many seconds for something where there is nothing.
    ///
    /// What is answered is answered again until [`MlsMembership::done`] is called with it: a crash loses nothing.
    pub async fn receive(&self, wait: u32) -> Result<Vec<Incoming>> {
        self.settle().await?;
        let wait = if self.store.inbox()?.is_empty() { wait } else { 0 };
        self.take_in(wait).await?;
        if let Err(error) = self.commit_to_all_proposals().await {
            // Another member may do it, and what came is told all the same.
            warn!(error = error.with_causes(), "could not commit to what others proposed");
        }
        let read = |json: String| {
            serde_json::from_str(&json).map_err(|error| Error::Damaged(format!("the inbox cannot be read: {error}")))
        };
        self.store.inbox()?.into_iter().map(read).collect()
    }

    /// What was received is dealt with, and is not answered again.
    pub fn done(&self, incoming: &[Incoming]) -> Result<()> {
        self.store.transaction(|| incoming.iter().try_for_each(|one| self.store.delete_from_inbox(one.id)))
    }

    async fn commit_to_all_proposals(&self) -> Result<()> {
        for row in self.store.groups()?.iter().filter(|row| GroupState::of(row) == GroupState::Active) {
            self.commit_to_proposals(&row.group_id).await?;
        }
        Ok(())
    }

    pub(super) fn forget_group(&self, group: &mut MlsGroup) -> Result<()> {
        self.store.transaction(|| self.forget_within(group))
    }

    pub(super) fn forget_within(&self, group: &mut MlsGroup) -> Result<()> {
        let group_id = group.group_id().to_vec();
        group.delete(provider_storage(&self.store.provider())).map_err(Error::storage("delete the group's keys"))?;
        self.store.delete_group(&group_id)
    }

    /// The name of a group for people: its own, or its id in hex.
    pub(super) fn name_of(&self, group_id: &[u8]) -> Result<String> {
        let row = self.store.groups()?.into_iter().find(|row| row.group_id == group_id);
        Ok(row.and_then(|row| row.name).unwrap_or_else(|| hex::encode(group_id)))
    }

    /// The devices in a group.
    pub fn members(&self, group_id: &[u8]) -> Result<Vec<DeviceOf>> {
        Ok(members_of(&self.load_group(group_id)?).into_iter().map(|(_, device)| device).collect())
    }
}

pub(super) fn provider_storage<'p>(
    provider: &'p super::Provider<'p>,
) -> &'p super::SqliteStorage<&'p rusqlite::Connection> {
    use openmls_traits::OpenMlsProvider as _;

    provider.storage()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_client_says_is_a_text() {
        assert!(serde_json::from_slice::<Content>(br#"{"text":"hello"}"#).is_ok());
        assert!(serde_json::from_slice::<Content>(b"hello").is_err());
    }
}
