//! Reads a `GroupInfo` (RFC 9420, section 12.4.3), and verifies the external Commit by which a device comes back into its
//! group (section 12.4.3.2).

use openmls::prelude::Ciphersuite;
use openmls_rust_crypto::RustCrypto;
use openmls_traits::crypto::OpenMlsCrypto as _;

use crate::wire::{Wire, vector};

const MLS10: u16 = 1;
const PUBLIC_MESSAGE: u16 = 1;
const GROUP_INFO: u16 = 4;
const RATCHET_TREE: u16 = 2;
const EXTERNAL_PUB: u16 = 4;
const NEW_MEMBER_COMMIT: u8 = 4;
const COMMIT: u8 = 3;
const BASIC: u16 = 1;
const SIGNED_BY_COMMIT: u8 = 3;

/// What the server reads in a `GroupInfo`. Its signature is not verified: the devices that use it do that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupInfo<'a> {
    /// The group's id.
    pub group_id: &'a [u8],
    /// The group's epoch.
    pub epoch: u64,
    /// The group's ciphersuite.
    pub ciphersuite: u16,
    /// Whether it has the extensions that an external Commit needs: `ratchet_tree` and `external_pub`.
    pub is_complete: bool,
    /// The serialised `GroupContext`.
    context: &'a [u8],
}

/// Reads a `GroupInfo`; `None` if the bytes are not exactly one `MLSMessage` with a `GroupInfo`.
#[must_use]
pub fn group_info(bytes: &[u8]) -> Option<GroupInfo<'_>> {
    let mut wire = Wire::new(bytes);
    if (wire.u16()?, wire.u16()?) != (MLS10, GROUP_INFO) {
        return None;
    }
    let start = wire.rest();
    let (version, ciphersuite, group_id, epoch) = (wire.u16()?, wire.u16()?, wire.vector()?, wire.u64()?);
    // Tree hash, transcript hash, extensions.
    let _ = (wire.vector()?, wire.vector()?, wire.vector()?);
    let context = start.get(..start.len() - wire.rest().len())?;
    let mut extensions = Wire::new(wire.vector()?);
    let mut types = Vec::new();
    while !extensions.rest().is_empty() {
        types.push(extensions.u16()?);
        extensions.vector()?;
    }
    // Confirmation tag, signer, signature.
    let _ = (wire.vector()?, wire.take(4)?, wire.vector()?);
    let is_complete = [RATCHET_TREE, EXTERNAL_PUB].iter().all(|one| types.contains(one));
    let read = GroupInfo { group_id, epoch, ciphersuite, is_complete, context };
    (version == MLS10 && wire.rest().is_empty()).then_some(read)
}

/// The device that signed an external Commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joiner {
    /// The identity in its basic credential.
    pub identity: Vec<u8>,
    /// The signature key of its leaf node, which signed the Commit.
    pub signature_key: Vec<u8>,
}

/// Returns the device that signed an external Commit to the group and epoch of a `GroupInfo`. `None` if the bytes are not
/// exactly one `PublicMessage` with such a Commit, or the signature does not hold.
#[must_use]
pub fn joiner(commit: &[u8], info: &GroupInfo<'_>) -> Option<Joiner> {
    let mut wire = Wire::new(commit);
    if (wire.u16()?, wire.u16()?) != (MLS10, PUBLIC_MESSAGE) {
        return None;
    }
    let (group_id, epoch, sender) = (wire.vector()?, wire.u64()?, wire.u8()?);
    let (_authenticated_data, content_type, _proposals) = (wire.vector()?, wire.u8()?, wire.vector()?);
    let is_of_group = group_id == info.group_id && epoch == info.epoch;
    // An external Commit always has a path.
    if !is_of_group || sender != NEW_MEMBER_COMMIT || content_type != COMMIT || wire.u8()? != 1 {
        return None;
    }
    let joiner = leaf(&mut wire)?;
    let _path = wire.vector()?;
    let content = commit.get(..commit.len() - wire.rest().len())?;
    let (signature, _confirmation_tag) = (wire.vector()?, wire.vector()?);
    let suite = Ciphersuite::try_from(info.ciphersuite).ok()?;
    let signed = signed(content, info.context)?;
    let scheme = suite.signature_algorithm();
    let holds = RustCrypto::default().verify_signature(scheme, &signed, &joiner.signature_key, signature).is_ok();
    (holds && wire.rest().is_empty()).then_some(joiner)
}

/// Reads a leaf node that a Commit brings (section 7.2).
fn leaf(wire: &mut Wire<'_>) -> Option<Joiner> {
    let (_encryption_key, signature_key) = (wire.vector()?, wire.vector()?);
    let (credential, identity) = (wire.u16()?, wire.vector()?);
    // Capabilities: versions, ciphersuites, extensions, proposals, credentials.
    for _ in 0..5 {
        wire.vector()?;
    }
    let (source, _parent_hash, _extensions, _signature) = (wire.u8()?, wire.vector()?, wire.vector()?, wire.vector()?);
    let joiner = Joiner { identity: identity.to_vec(), signature_key: signature_key.to_vec() };
    (credential == BASIC && source == SIGNED_BY_COMMIT).then_some(joiner)
}

/// The bytes that the signature covers: `SignContent` of `FramedContentTBS` (sections 5.1.2 and 6.1). The content begins
/// with the version and the wire format, as the message does.
fn signed(content: &[u8], group_context: &[u8]) -> Option<Vec<u8>> {
    let to_be_signed = [content, group_context].concat();
    Some([vector(b"MLS 1.0 FramedContentTBS")?, vector(&to_be_signed)?].concat())
}

#[cfg(test)]
mod tests {
    use openmls::prelude::{
        BasicCredential, CredentialWithKey, LeafNodeParameters, MlsGroup, MlsMessageBodyIn, MlsMessageIn,
        MlsMessageOut,
        tls_codec::{Deserialize as _, Serialize as _},
    };
    use openmls_basic_credential::SignatureKeyPair;
    use openmls_rust_crypto::OpenMlsRustCrypto;
    use openmls_traits::OpenMlsProvider as _;
    use rstest::rstest;

    use super::*;
    use crate::{
        key_package::KNOWN_CIPHERSUITES,
        mls_message::{Header, header},
    };

    struct Device {
        provider: OpenMlsRustCrypto,
        signer: SignatureKeyPair,
        credential: CredentialWithKey,
    }

    fn device(suite: Ciphersuite, name: &str) -> Device {
        let (provider, signer) =
            (OpenMlsRustCrypto::default(), SignatureKeyPair::new(suite.signature_algorithm()).unwrap());
        let credential = CredentialWithKey {
            credential: BasicCredential::new(name.as_bytes().to_vec()).into(),
            signature_key: signer.public().into(),
        };
        Device { provider, signer, credential }
    }

    fn encode(message: &MlsMessageOut) -> Vec<u8> {
        message.tls_serialize_detached().unwrap()
    }

    /// A group's GroupInfo, and the external Commit of a device to it.
    fn external_commit(suite: Ciphersuite) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let (alice, bob) = (device(suite, "alice/laptop"), device(suite, "bob/phone"));
        let group = MlsGroup::builder()
            .ciphersuite(suite)
            .with_group_id(openmls::prelude::GroupId::from_slice(b"friends"))
            .build(&alice.provider, &alice.signer, alice.credential)
            .unwrap();
        let info = encode(&group.export_group_info(alice.provider.crypto(), &alice.signer, true).unwrap());
        let read = MlsMessageIn::tls_deserialize(&mut info.as_slice()).unwrap();
        let MlsMessageBodyIn::GroupInfo(verifiable) = read.extract() else { panic!("no GroupInfo") };
        let (_, bundle) = MlsGroup::external_commit_builder()
            .build_group(&bob.provider, verifiable, bob.credential)
            .unwrap()
            .leaf_node_parameters(LeafNodeParameters::default())
            .load_psks(bob.provider.storage())
            .unwrap()
            .build(bob.provider.rand(), bob.provider.crypto(), &bob.signer, |_| true)
            .unwrap()
            .finalize(&bob.provider)
            .unwrap();
        (info, encode(&bundle.into_commit()), bob.signer.public().to_vec())
    }

    #[rstest]
    fn who_signed_an_external_commit_is_read(#[values(0, 1, 2)] suite: usize) {
        let suite = Ciphersuite::try_from(KNOWN_CIPHERSUITES[suite]).unwrap();
        let (info, commit, signature_key) = external_commit(suite);
        let read = group_info(&info).unwrap();
        assert_eq!((read.group_id, read.epoch, read.ciphersuite), (&b"friends"[..], 0, suite.into()));
        assert!(read.is_complete);
        assert_eq!(joiner(&commit, &read), Some(Joiner { identity: b"bob/phone".to_vec(), signature_key }));
        let is_external =
            Header::OfGroup { group_id: b"friends".to_vec(), epoch: 0, is_commit: true, is_external: true };
        assert_eq!(header(&commit), Some(is_external));
    }

    /// A changed byte breaks the signature, except in the confirmation tag, which only members can check.
    #[test]
    fn an_external_commit_is_signed_as_a_whole_and_for_one_epoch() {
        let suite = Ciphersuite::try_from(KNOWN_CIPHERSUITES[0]).unwrap();
        let (info, commit, _) = external_commit(suite);
        let read = group_info(&info).unwrap();
        let tag = 1 + 32;
        for at in 0..commit.len() - tag {
            let mut changed = commit.clone();
            changed[at] ^= 1;
            assert_eq!(joiner(&changed, &read), None, "byte {at} of {}", commit.len());
        }
        for length in 0..commit.len() {
            assert_eq!(joiner(&commit[..length], &read), None, "{length}");
        }
        assert_eq!(joiner(&[commit.clone(), vec![0]].concat(), &read), None);
        let (other, ..) = external_commit(suite);
        assert_eq!(joiner(&commit, &group_info(&other).unwrap()), None, "it is of another group of this name");
        for length in 0..info.len() {
            assert_eq!(group_info(&info[..length]), None, "{length}");
        }
        assert_eq!(group_info(&[info, vec![0]].concat()), None);
        assert_eq!(group_info(&commit), None);
    }

    #[test]
    fn a_group_info_without_its_tree_is_not_complete() {
        let suite = Ciphersuite::try_from(KNOWN_CIPHERSUITES[0]).unwrap();
        let alice = device(suite, "alice/laptop");
        let group =
            MlsGroup::builder().ciphersuite(suite).build(&alice.provider, &alice.signer, alice.credential).unwrap();
        let info = encode(&group.export_group_info(alice.provider.crypto(), &alice.signer, false).unwrap());
        assert!(!group_info(&info).unwrap().is_complete);
    }
}
