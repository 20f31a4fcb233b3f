//! Proofs of membership in an epoch, sent with each Commit. The device keeps those of the last epochs, because a server
//! that was restored from a backup asks for one of them.

use keypool_openapi::{Base64Bytes, CommitRequest, CommitResponse, ProblemType};
use openmls::prelude::MlsGroup;
use openmls_traits::OpenMlsProvider as _;
use tracing::info;

use super::{encoding::group_path, membership::MlsMembership};
use crate::error::{Error, Result};

/// The label of the proof: a secret of the epoch's exporter (RFC 9420, section 8.5).
pub(super) const PROOF_LABEL: &str = "keypool commit proof";
pub(super) const PROOF_LENGTH: usize = 32;

/// The number of epochs whose proofs are kept: the current one, and the 64 that a server lets a Commit skip after a
/// restore.
const KEPT: u64 = 65;

impl MlsMembership<'_> {
    /// The proof for the group's current epoch. Stores it, within the caller's transaction.
    pub(super) fn epoch_proof(&self, group: &MlsGroup) -> Result<Vec<u8>> {
        let provider = self.store.provider();
        let proof = group
            .export_secret(provider.crypto(), PROOF_LABEL, &[], PROOF_LENGTH)
            .map_err(|error| Error::mls("derive the proof of an epoch")(error.into()))?;
        self.store.put_commit_proof(group.group_id().as_slice(), group.epoch().as_u64(), &proof, KEPT)?;
        Ok(proof)
    }

    /// Sends a Commit. If the server is in a past epoch, it was restored from a backup: sends the Commit again with the
    /// proof of that epoch.
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

    /// The request with the proof of the server's epoch; `None` if that epoch is not past, or its proof is not stored.
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
        info!(epoch, "the server was restored from a backup: sending the proof of a past epoch");
        Ok(Some(CommitRequest { proof: Some(Base64Bytes(proof)), ..request.clone() }))
    }
}

#[cfg(test)]
mod tests {
    use openmls::prelude::OpenMlsCrypto as _;
    use openmls_rust_crypto::RustCrypto;
    use openmls_traits::types::HashType;
    use sha2::{Digest, Sha256};

    use super::*;

    /// `ExpandWithLabel` (RFC 9420, section 8) to 32 bytes.
    fn expand_with_label(secret: &[u8], label: &str, context: &[u8]) -> Vec<u8> {
        let vector = |bytes: &[u8]| [&[u8::try_from(bytes.len()).unwrap()], bytes].concat();
        let label = vector(format!("MLS 1.0 {label}").as_bytes());
        let info = [&[0, 32], label.as_slice(), &vector(context)].concat();
        RustCrypto::default().hkdf_expand(HashType::Sha2_256, secret, &info, 32).unwrap().as_slice().to_vec()
    }

    /// The vector of docs/writing-a-client.md, by the definition of `MLS-Exporter` (RFC 9420, section 8.5).
    #[test]
    fn the_proof_is_that_of_the_guide_for_clients() {
        let exporter_secret: Vec<u8> = (0..32).collect();
        let derived = expand_with_label(&exporter_secret, PROOF_LABEL, &[]);
        let proof = expand_with_label(&derived, "exported", &Sha256::digest([]));
        assert_eq!(proof.len(), PROOF_LENGTH);
        let guide = include_str!("../../../docs/writing-a-client.md");
        let digest = Base64Bytes(Sha256::digest(&proof).to_vec()).encode();
        for value in [hex::encode(&exporter_secret), hex::encode(&proof), Base64Bytes(proof).encode(), digest] {
            assert!(guide.contains(&format!("| `{value}` |")), "the guide does not have {value}");
        }
    }
}
