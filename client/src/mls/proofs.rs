//! What members of an epoch show for being so. Those of the last epochs are kept: a server that was restored from a backup asks
//! for one of them.

use keypool_openapi::{Base64Bytes, CommitRequest, CommitResponse, ProblemType};
use openmls::prelude::MlsGroup;
use openmls_traits::OpenMlsProvider as _;
use tracing::info;

use super::{MlsMembership, commits::group_path};
use crate::error::{Error, Result};

/// A secret of the epoch's exporter (RFC 9420, section 8.5).
pub(super) const PROOF_LABEL: &str = "keypool commit proof";
pub(super) const PROOF_LENGTH: usize = 32;

/// The epochs whose proofs are kept: this one, and as many before it as a server lets a Commit skip after a restore.
const KEPT: u64 = 65;

impl MlsMembership<'_> {
    /// What a Commit of the epoch that the group is in shows. Kept with it, within the caller's transaction.
    pub(super) fn proof(&self, group: &MlsGroup) -> Result<Vec<u8>> {
        let provider = self.store.provider();
        let proof = group
            .export_secret(provider.crypto(), PROOF_LABEL, &[], PROOF_LENGTH)
            .map_err(|error| Error::mls("derive the proof of an epoch")(error.into()))?;
        self.store.put_commit_proof(group.group_id().as_slice(), group.epoch().as_u64(), &proof, KEPT)?;
        Ok(proof)
    }

    /// Sends a Commit. Where the server is in an epoch that is over, it was restored from a backup, and asks for the proof of
    /// that epoch.
    pub(super) async fn send_commit(&self, group_id: &[u8], request: &CommitRequest) -> Result<CommitResponse> {
        let path = group_path(group_id)?;
        let outcome = self.connection.api().commit(&path, request).await;
        match &outcome {
            Err(error) => match self.with_older_proof(group_id, request, error)? {
                Some(request) => self.connection.api().commit(&path, &request).await,
                None => outcome,
            },
            Ok(_) => outcome,
        }
    }

    /// The request with the proof of the epoch that the server is in; none where that is not over, or the proof is not here.
    fn with_older_proof(
        &self,
        group_id: &[u8],
        request: &CommitRequest,
        error: &Error,
    ) -> Result<Option<CommitRequest>> {
        let (Some(ProblemType::StaleEpoch), Some(epoch)) = (error.problem(), error.group_epoch()) else {
            return Ok(None);
        };
        if epoch >= self.load_group(group_id)?.epoch().as_u64() {
            return Ok(None);
        }
        let Some(proof) = self.store.commit_proof(group_id, epoch)? else { return Ok(None) };
        info!(epoch, "the server was restored from a backup: showing it the proof of an epoch that is over");
        Ok(Some(CommitRequest { proof: Some(Base64Bytes(proof)), ..request.clone() }))
    }
}
