//! Messages to the members of a group.

use keypool_openapi::{Base64Bytes, DeviceOf, MessageRequest, Undelivered};
use tracing::warn;

use super::{
    content::{Content, Message},
    encoding::{encode, group_path},
    membership::MlsMembership,
};
use crate::error::{Error, Result};

impl MlsMembership<'_> {
    /// Sends a message to all other members of a group: a text, or [`Message::new`] for bytes of another type. Processes the queue first, so that the message is in the current
    /// epoch; [`MlsMembership::receive`] returns what arrived.
    ///
    /// Returns the devices for which the server could not queue the message.
    pub async fn send(&self, group_id: &[u8], message: impl Into<Message>) -> Result<Vec<Undelivered>> {
        let content = Content::from(message.into());
        let _turn = self.store.turns.groups().await;
        self.catch_up_in_turn().await?;
        self.check_writable(group_id)?;
        // No application message may be sent while proposals are pending (RFC 9420, section 12.4).
        self.commit_to_proposals(group_id).await?;
        self.send_content(group_id, &content).await
    }

    /// Sends the group's name to its members. After an error, the next addition sends it again.
    pub(super) async fn send_name(&self, group_id: &[u8]) {
        let told = async {
            let row = self.store.groups()?.into_iter().find(|row| row.group_id == group_id);
            match row.and_then(|row| row.name) {
                Some(name) => self.send_content(group_id, &Content::GroupName(name)).await,
                None => Ok(Vec::new()),
            }
        };
        match told.await {
            Ok(undelivered) => log_undelivered(&undelivered),
            Err(error) => warn!(%error, "could not send the group's name"),
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

    pub(super) async fn post(
        &self,
        group_id: &[u8],
        message: Vec<u8>,
        recipients: Vec<DeviceOf>,
    ) -> Result<Vec<Undelivered>> {
        let request = MessageRequest { message: Base64Bytes(message), recipients };
        Ok(self.connection.api().send_message(&group_path(group_id)?, &request).await?.undelivered)
    }
}

/// Logs the devices for which something could not be queued, where no caller gets that answer.
pub(super) fn log_undelivered(undelivered: &[Undelivered]) {
    for missed in undelivered {
        warn!(user = %missed.user, device = %missed.device, reason = %missed.reason, "not delivered");
    }
}
