//! Commits: accepts one Commit for each epoch, together with the reservations that it spends and its Welcome.

use jiff::Timestamp;
use keypool_openapi::{
    Base64Bytes, CommitRequest, CommitResponse, DeviceOf, GroupId, ProblemType, Proof, ReservationId, SpendReceipt,
};
use keypool_validation::mls_message::{Header, header};
use sha2::{Digest, Sha256};

use super::{
    Service,
    batches::receipts,
    group_infos,
    mls_messages::{malformed, representable, sha256, sized, wrong_message},
    reservations::{bind, lost_reservation},
    times::after,
};
use crate::{
    caller::Caller,
    log::Receivable,
    problem::{About, Failure, unknown_token},
    store::{
        self, Accepted, BoundReservation, Commit, CommitError, Delivered, MESSAGE_UNIT, NewGroupInfo, Post, Spend,
        Spent,
    },
};

impl Service {
    /// Accepts a Commit with its spends and its Welcome: all of it or nothing.
    pub async fn commit(
        &self,
        caller: Caller,
        group_id: GroupId,
        request: CommitRequest,
    ) -> Result<CommitResponse, Failure> {
        let (epoch, is_external) = commit_epoch(&request, &group_id)?;
        let info = new_info(&request, &caller, (&group_id, epoch))?;
        let next_proof_digest = request.next_proof_digest.as_ref().map(|digest| sha256(&digest.0)).transpose()?;
        request.proof.as_ref().map(|proof| sha256(&proof.0)).transpose()?;
        let sent = [Some(&request.commit), request.welcome.as_ref(), request.group_info.as_ref()];
        let bytes: usize = sent.iter().flatten().map(|sent| sent.0.len()).sum();
        self.limits.request(&caller.device.user, bytes / MESSAGE_UNIT)?;
        self.block(move |service, now| {
            if is_external {
                service.check_external(&caller, (&group_id, epoch), &request)?;
            }
            let expires_at = after(now.as_second(), service.policy.message_retention)?;
            let reservations = bound(request.reservations, request.binds)?;
            let want = Commit {
                epoch,
                digest: Sha256::digest(&request.commit.0).into(),
                welcome: request.welcome.map(|welcome| welcome.0),
                reservations,
                proof_digest: request.proof.map(|proof| Sha256::digest(&proof.0).into()),
                next_proof_digest,
                info,
                is_external,
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
                Ok(Accepted { delivered: Delivered { to, undelivered }, spent, is_kept }) => {
                    service.limits.spent(&caller.device.user, want.reservations.len());
                    service.fetches.ring(&to);
                    Ok(CommitResponse {
                        epoch: epoch.cast_unsigned() + 1,
                        undelivered,
                        group_info_kept: is_kept,
                        receipts: service.receipts_of(&spent, now),
                    })
                }
                Err(store::Failure::Refused(error)) => Err(not_accepted(error, &group_id, epoch)),
                Err(store::Failure::Store(error)) => Err(error.into()),
            }
        })
        .await
    }

    /// The receipts of the spends of a Commit, where the caller wants them.
    fn receipts_of(&self, spent: &[(Spend, Spent)], now: Timestamp) -> Vec<SpendReceipt> {
        let wanted: Vec<_> = spent.iter().map(|(spend, spent)| Receivable::of_spend(spend, spent)).collect();
        let receipts = receipts(self.log.as_ref(), &wanted, now).into_iter();
        let of = |((spend, _), receipt): (&(Spend, _), Option<String>)| {
            Some(SpendReceipt { reservation_id: spend.reservation, receipt: receipt? })
        };
        spent.iter().zip(receipts).filter_map(of).collect()
    }
}

/// The reservations, each with its `bind` if there is one.
fn bound(reservations: Vec<ReservationId>, binds: Vec<Base64Bytes>) -> Result<Vec<BoundReservation>, Failure> {
    if binds.is_empty() {
        return Ok(reservations.into_iter().map(|id| (id, None)).collect());
    }
    if binds.len() != reservations.len() {
        return Err(malformed(format!(
            "There are {} `binds` for {} `reservations`. Send one for each, in their order, or none at all.",
            binds.len(),
            reservations.len()
        )));
    }
    let one = |(id, given): (ReservationId, Base64Bytes)| Ok((id, bind(Some(given), Proof::Receipt)?));
    reservations.into_iter().zip(binds).map(one).collect()
}

/// Returns the epoch of a Commit, and whether it is an external one, if the whole request is valid.
fn commit_epoch(request: &CommitRequest, group_id: &GroupId) -> Result<(i64, bool), Failure> {
    sized("commit", &request.commit.0)?;
    let (epoch, is_external) = match header(&request.commit.0) {
        Some(Header::OfGroup { group_id: of, epoch, is_commit: true, is_external }) if of == group_id.as_bytes() => {
            (epoch, is_external)
        }
        found => return Err(wrong_message("commit", found, group_id)),
    };
    if is_external && !request.reservations.is_empty() {
        return Err(malformed("An external Commit adds no devices: leave out `reservations` and `welcome`."));
    }
    if is_external && (request.group_info.is_none() || request.next_proof_digest.is_none()) {
        return Err(malformed(
            "An external Commit brings the next `group_info`, its `members` and the `next_proof_digest`: without them, the next \
             device that falls behind could not come back.",
        ));
    }
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
    Ok((representable(epoch)?, is_external))
}

/// Returns the GroupInfo that a Commit brings, for the epoch after it.
fn new_info(
    request: &CommitRequest,
    caller: &Caller,
    (group_id, epoch): (&GroupId, i64),
) -> Result<Option<NewGroupInfo>, Failure> {
    match &request.group_info {
        Some(info) => {
            group_infos::new_info(info, (&request.members, caller), (group_id, epoch.saturating_add(1))).map(Some)
        }
        None if request.members.is_empty() => Ok(None),
        None => Err(malformed("`members` come with the `group_info` of the epoch after the Commit.")),
    }
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
        CommitError::NotListed => group_infos::not_listed(group_id),
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
