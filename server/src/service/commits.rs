//! Commits: accepts one Commit for each epoch, together with the reservations that it spends and its Welcome.

use keypool_openapi::{CommitRequest, CommitResponse, DeviceOf, GroupId, ProblemType};
use keypool_validation::mls_message::{Header, header};
use sha2::{Digest, Sha256};

use super::{
    Service,
    mls_messages::{malformed, sized, wrong_message},
    reservations::lost_reservation,
    times::after,
};
use crate::{
    caller::Caller,
    problem::{About, Failure, unknown_token},
    store::{self, Commit, CommitError, Delivered, MESSAGE_UNIT, Post},
};

impl Service {
    /// Accepts a Commit with its spends and its Welcome: all of it or nothing.
    pub async fn commit(
        &self,
        caller: Caller,
        group_id: GroupId,
        request: CommitRequest,
    ) -> Result<CommitResponse, Failure> {
        let epoch = commit_epoch(&request, &group_id)?;
        let next_proof_digest = request.next_proof_digest.as_ref().map(|digest| sha256(&digest.0)).transpose()?;
        request.proof.as_ref().map(|proof| sha256(&proof.0)).transpose()?;
        let bytes = request.commit.0.len() + request.welcome.as_ref().map_or(0, |welcome| welcome.0.len());
        self.limits.request(&caller.device.user, bytes / MESSAGE_UNIT)?;
        self.block(move |service, now| {
            let expires_at = after(now.as_second(), service.policy.message_retention)?;
            let want = Commit {
                epoch,
                digest: Sha256::digest(&request.commit.0).into(),
                welcome: request.welcome.map(|welcome| welcome.0),
                reservations: request.reservations,
                proof_digest: request.proof.map(|proof| Sha256::digest(&proof.0).into()),
                next_proof_digest,
                post: Post {
                    by: caller.shown_token(),
                    by_user: caller.device.user.clone(),
                    group_id: group_id.as_bytes().to_vec(),
                    message: request.commit.0,
                    recipients: request.recipients,
                    expires_at,
                    capacity: service.policy.queue_capacity,
                },
            };
            match service.store.commit(&want, now) {
                Ok(Delivered { to, undelivered }) => {
                    service.limits.spent(&caller.device.user, want.reservations.len());
                    service.fetches.ring(&to);
                    Ok(CommitResponse { epoch: epoch.cast_unsigned() + 1, undelivered })
                }
                Err(store::Failure::Refused(error)) => Err(not_accepted(error, &group_id, epoch)),
                Err(store::Failure::Store(error)) => Err(error.into()),
            }
        })
        .await
    }
}

/// Returns the epoch of a Commit if the whole request is valid.
fn commit_epoch(request: &CommitRequest, group_id: &GroupId) -> Result<i64, Failure> {
    sized("commit", &request.commit.0)?;
    let epoch = match header(&request.commit.0) {
        Some(Header::OfGroup { group_id: of, epoch, is_commit: true }) if of == group_id.as_bytes() => epoch,
        found => return Err(wrong_message("commit", found, group_id)),
    };
    match &request.welcome {
        None if !request.reservations.is_empty() => {
            return Err(malformed("The Commit adds devices, and there is no `welcome` for them."));
        }
        Some(_) if request.reservations.is_empty() => {
            return Err(malformed(
                "There is a `welcome`, and no `reservations`. Name the reservations of the devices that it adds.",
            ));
        }
        Some(welcome) => {
            sized("welcome", &welcome.0)?;
            if header(&welcome.0) != Some(Header::Welcome) {
                return Err(malformed("The `welcome` is not exactly one MLSMessage with a Welcome."));
            }
        }
        None => {}
    }
    // One less than the largest value: the next epoch must be representable, too.
    i64::try_from(epoch)
        .ok()
        .filter(|epoch| *epoch < i64::MAX)
        .ok_or_else(|| malformed(format!("`epoch` {epoch} is too large. Create a new group.")))
}

/// Parses a SHA-256, which has 32 bytes.
fn sha256(bytes: &[u8]) -> Result<[u8; 32], Failure> {
    let length = bytes.len();
    bytes
        .try_into()
        .map_err(|_| malformed(format!("`proof` and `next_proof_digest` must have 32 bytes; got {length}.")))
}

fn not_accepted(error: CommitError, group_id: &GroupId, made_in: i64) -> Failure {
    match error {
        CommitError::TokenRevoked => unknown_token(),
        CommitError::Stale(epoch) => {
            let next = if epoch < made_in {
                "Commits before it have not come here, or were lost when the server was restored: then show the `proof` of the \
                 epoch that the group is in here, and skip 64 epochs at most."
            } else {
                "Fetch the Commits that came before it, and make it anew."
            };
            let detail = format!(
                "The group {group_id} is in epoch {epoch}, and the Commit was made in epoch {made_in}. {next} Nothing was \
                 spent or delivered."
            );
            Failure { about: About::Epoch(epoch.cast_unsigned()), ..Failure::new(ProblemType::StaleEpoch, detail) }
        }
        CommitError::NotAMember => Failure::new(
            ProblemType::Forbidden,
            format!(
                "The Commit before asked for a `proof` that only members of the group {group_id} can know, and this one \
                 does not show it. Nothing was spent or delivered. If members cannot show it, the `next_proof_digest` of \
                 the Commit before was wrong: make a new group."
            ),
        ),
        CommitError::QueueFull(id, DeviceOf { user, device }) => Failure {
            about: About::Reservation(id),
            ..Failure::new(
                ProblemType::QueueFull,
                format!(
                    "The queue of {user}/{device} does not take the Welcome: the device has not fetched what this user sent it \
                     before. Leave the device out, or try again later. Nothing was spent or delivered, and the epoch is still \
                     free."
                ),
            )
        },
        CommitError::Reservation(id, error) => {
            let failure = lost_reservation(error, &id);
            Failure {
                about: About::Reservation(id),
                detail: format!("{} Nothing was spent or delivered, and the epoch is still free.", failure.detail),
                ..failure
            }
        }
    }
}
