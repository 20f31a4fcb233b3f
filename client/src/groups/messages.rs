//! Messages to the members of a group.

use keypool_openapi::{Base64Bytes, DeviceOf, MessageRequest, ProblemType, Undelivered};
use openmls::prelude::MlsGroup;
use tracing::warn;

use super::{
    content::{Content, Message},
    encoding::{encode, group_path},
    group::GroupState,
    membership::{ATTEMPTS, MlsMembership},
};
use crate::error::{Error, Result};

impl MlsMembership<'_> {
    /// Sends a message to all other members of a group: a text, or [`Message::new`] for bytes of another type. Processes
    /// the queue first, so that the message is in the current epoch; [`MlsMembership::receive`] returns what arrived.
    ///
    /// Returns the devices for which the server could not queue the message.
    pub async fn send(&self, group_id: &[u8], message: impl Into<Message>) -> Result<Vec<Undelivered>> {
        let content = Content::from(message.into());
        let _turn = self.store.turns.groups().await;
        self.catch_up_in_turn().await?;
        self.check_writable(group_id)?;
        self.check_stays(group_id)?;
        // No application message may be sent while proposals are pending (RFC 9420, section 12.4).
        self.commit_to_proposals(group_id).await?;
        self.send_content(group_id, &content).await
    }

    /// Encrypts and sends something until the group is in the epoch in which it was encrypted.
    pub(super) async fn post_in_epoch(
        &self,
        group_id: &[u8],
        encrypt: impl Fn(&mut MlsGroup) -> Result<Vec<u8>>,
    ) -> Result<Vec<Undelivered>> {
        let mut attempts = 0;
        loop {
            let mut group = self.load_group(group_id)?;
            let (epoch, recipients) = (group.epoch().as_u64(), self.others_in(&group));
            if recipients.is_empty() {
                return Ok(Vec::new());
            }
            let message = self.store.transaction(|| encrypt(&mut group))?;
            // The members of a group that is behind go on talking in an epoch that the server has left.
            let expected_epoch = (self.state_of(group_id)? == GroupState::Active).then_some(epoch);
            attempts += 1;
            match self.post(group_id, (&message, recipients.clone()), expected_epoch).await {
                Err(error) if error.problem() == Some(ProblemType::StaleEpoch) && attempts < ATTEMPTS => {
                    // The server was restored from a backup.
                    if error.group_epoch().is_some_and(|server| server < epoch) {
                        return self.post(group_id, (&message, recipients), None).await;
                    }
                    self.catch_up_with(group_id, error.group_epoch()).await?;
                    self.check_writable(group_id)?;
                    Box::pin(self.commit_to_proposals(group_id)).await?;
                }
                outcome => return outcome,
            }
        }
    }

    /// Sends the group's name to its members, and its setting if it is not the usual one. After an error, the next addition
    /// sends them again.
    pub(super) async fn send_name(&self, group_id: &[u8]) {
        let told = async {
            let row = self.store.groups()?.into_iter().find(|row| row.group_id == group_id);
            let Some(row) = row else { return Ok(Vec::new()) };
            if !row.admits_devices {
                log_undelivered(&self.send_content(group_id, &Content::AdmitsDevices(false)).await?);
            }
            match row.name {
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
        let bytes = serde_json::to_vec(content)
            .map_err(|error| Error::Damaged(format!("a message cannot be written: {error}")))?;
        self.post_in_epoch(group_id, |group| {
            let signer = self.identity.signer_in(self.store, group)?;
            let message = group
                .create_message(&self.store.provider(), &signer, &bytes)
                .map_err(|error| Error::mls("encrypt the message")(error.into()))?;
            encode(&message)
        })
        .await
    }

    pub(super) async fn post(
        &self,
        group_id: &[u8],
        (message, recipients): (&[u8], Vec<DeviceOf>),
        expected_epoch: Option<u64>,
    ) -> Result<Vec<Undelivered>> {
        let request = MessageRequest { message: Base64Bytes(message.to_vec()), recipients, expected_epoch };
        Ok(self.connection.api().send_message(&group_path(group_id)?, &request).await?.undelivered)
    }
}

/// Logs the devices for which something could not be queued, where no caller gets that answer.
pub(super) fn log_undelivered(undelivered: &[Undelivered]) {
    for missed in undelivered {
        warn!(user = %missed.user, device = %missed.device, reason = %missed.reason, "not delivered");
    }
}
