//! The GroupInfo of a group whose newest Commit brought none.

use jiff::Timestamp;

use super::{
    commits::newest_commit,
    database::{Conn, Failure, Store},
    group_infos::{self, NewGroupInfo, SHARE},
    tokens::{ShownToken, TokenRevoked, hold_caller},
};

/// A request to keep the GroupInfo of a group whose newest Commit brought none.
#[derive(Clone, Debug)]
pub struct KeepGroupInfo {
    /// The sender's token.
    pub by: ShownToken,
    /// The sender's user.
    pub by_user: String,
    /// The group.
    pub group_id: Vec<u8>,
    /// The epoch of the GroupInfo.
    pub epoch: i64,
    /// The SHA-256 of the sender's proof of membership.
    pub proof_digest: Option<[u8; 32]>,
    /// The GroupInfo.
    pub info: NewGroupInfo,
}

/// The reason why a GroupInfo was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupInfoError {
    /// The caller's token has been revoked.
    TokenRevoked,
    /// The server has received no Commit of the group.
    UnknownGroup,
    /// The group is in this epoch, which differs from the GroupInfo's.
    Stale(i64),
    /// The request does not show the proof that the newest Commit requires.
    NotAMember,
    /// The GroupInfos of the caller's user would take more bytes than this.
    TooMuch(i64),
}

impl From<TokenRevoked> for GroupInfoError {
    fn from(TokenRevoked: TokenRevoked) -> Self {
        Self::TokenRevoked
    }
}

fn keep_later(conn: &mut Conn<'_>, request: &KeepGroupInfo, now: Timestamp) -> Result<(), Failure<GroupInfoError>> {
    hold_caller::<GroupInfoError>(conn, &request.by)?;
    let newest = newest_commit(conn, &request.group_id)?.ok_or(Failure::Refused(GroupInfoError::UnknownGroup))?;
    let (epoch, asked, _) = newest;
    let current = epoch.saturating_add(1);
    if request.epoch != current {
        return Err(Failure::Refused(GroupInfoError::Stale(current)));
    }
    // A false GroupInfo would mislead the members, so a proof is needed even in a group whose Commits ask for none.
    let shows = asked.is_some_and(|asked| request.proof_digest.is_some_and(|shown| shown == *asked));
    if !shows {
        return Err(Failure::Refused(GroupInfoError::NotAMember));
    }
    let group = (request.group_id.as_slice(), request.epoch);
    if !group_infos::keep(conn, group, &request.by_user, &request.info, now.as_second())? {
        return Err(Failure::Refused(GroupInfoError::TooMuch(SHARE)));
    }
    Ok(())
}

impl Store {
    /// Keeps the GroupInfo of a group whose newest Commit brought none.
    ///
    /// # Errors
    /// See [`GroupInfoError`]. Nothing has changed then.
    pub fn keep_group_info(&self, request: &KeepGroupInfo, now: Timestamp) -> Result<(), Failure<GroupInfoError>> {
        self.write("group_info", |conn| keep_later(conn, request, now))
    }
}
