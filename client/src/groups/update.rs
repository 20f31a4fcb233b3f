//! Replaces this device's keys in a group, and commits the proposals of other members.

use keypool_openapi::Undelivered;

use super::{
    commit::Change, group::GroupState, leave::is_leaving, membership::MlsMembership, messages::log_undelivered,
};
use crate::error::Result;

impl MlsMembership<'_> {
    /// Replaces this device's keys in a group, and commits the pending proposals. Stolen old keys cannot decrypt the
    /// later messages (RFC 9420, section 16.6).
    pub async fn update_keys(&self, group_id: &[u8]) -> Result<Vec<Undelivered>> {
        let _turn = self.store.turns.groups().await;
        self.settle_in_turn().await?;
        self.check_writable(group_id)?;
        self.check_stays(group_id)?;
        self.commit(group_id, |_| Some(Change::Update)).await
    }

    /// Commits the pending proposals of a group, so that members who want to leave are removed. All members try, and
    /// one wins. A device that proposed to leave cannot commit that proposal itself.
    pub(super) async fn commit_to_proposals(&self, group_id: &[u8]) -> Result<()> {
        let undelivered = self
            .commit(group_id, |group| (group.has_pending_proposals() && !is_leaving(group)).then_some(Change::Update))
            .await?;
        log_undelivered(&undelivered);
        Ok(())
    }

    pub(super) async fn commit_to_all_proposals(&self) -> Result<()> {
        for row in self.store.groups()?.iter().filter(|row| GroupState::of(row) == GroupState::Active) {
            if !self.forget_if_all_leave(&row.group_id)? {
                self.commit_to_proposals(&row.group_id).await?;
            }
        }
        Ok(())
    }
}
