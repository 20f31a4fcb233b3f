use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use openmls::prelude::{
    GroupId, KeyPackage, KeyPackageIn, LeafNodeParameters, MlsGroup, MlsGroupCreateConfig, MlsGroupJoinConfig,
    MlsMessageBodyIn, MlsMessageIn, OpenMlsProvider, ProcessedMessageContent, ProtocolVersion, StagedWelcome,
};
use serde_json::Value;
use tls_codec::{Deserialize, Serialize};

use super::{Device, device::decode};

/// A device that is in a group, in memory.
pub struct Party {
    device: Device,
    group: MlsGroup,
}

fn message(bytes: &[u8]) -> MlsMessageBodyIn {
    MlsMessageIn::tls_deserialize(&mut &*bytes).unwrap().extract()
}

impl Device {
    /// Makes a group with this device as its only member.
    pub fn founds(self, name: &str) -> Party {
        self.founds_id(name.as_bytes())
    }

    /// The same, by the bytes of its id.
    pub fn founds_id(self, id: &[u8]) -> Party {
        let config = MlsGroupCreateConfig::builder().ciphersuite(self.suite).use_ratchet_tree_extension(true).build();
        let id = GroupId::from_slice(id);
        let group = MlsGroup::new_with_group_id(&self.provider, &*self.signer, &config, id, self.credential()).unwrap();
        Party { device: self, group }
    }

    /// Joins a group.
    pub fn joins(self, welcome: &[u8]) -> Party {
        let MlsMessageBodyIn::Welcome(welcome) = message(welcome) else { panic!("no Welcome") };
        let config = MlsGroupJoinConfig::builder().use_ratchet_tree_extension(true).build();
        let staged = StagedWelcome::new_from_welcome(&self.provider, &config, welcome, None).unwrap();
        let group = staged.into_group(&self.provider).unwrap();
        Party { device: self, group }
    }
}

impl Party {
    /// The group's id, as it is in a path.
    pub fn path(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.group.group_id().as_slice())
    }

    pub fn epoch(&self) -> u64 {
        self.group.epoch().as_u64()
    }

    /// Whether the signature key of a reserved KeyPackage is a member's already: such a one cannot be added.
    pub fn knows(&self, reservation: &Value) -> bool {
        let package = self.reserved(reservation);
        let key = package.leaf_node().signature_key().as_slice();
        self.group.members().any(|member| member.signature_key == key)
    }

    fn reserved(&self, reservation: &Value) -> KeyPackage {
        let bytes = decode(reservation["keypackage"].as_str().unwrap());
        let MlsMessageBodyIn::KeyPackage(package) = message(&bytes) else { panic!("no KeyPackage") };
        KeyPackageIn::validate(package, self.device.provider.crypto(), ProtocolVersion::Mls10).unwrap()
    }

    /// Commits to adding those whose KeyPackages are reserved: the Commit and the Welcome.
    pub fn adds(&mut self, reservations: &[&Value]) -> (Vec<u8>, Vec<u8>) {
        let packages: Vec<_> = reservations.iter().map(|reservation| self.reserved(reservation)).collect();
        let (commit, welcome, _) =
            self.group.add_members(&self.device.provider, &*self.device.signer, &packages).unwrap();
        (commit.tls_serialize_detached().unwrap(), welcome.tls_serialize_detached().unwrap())
    }

    /// Commits to new keys of its own.
    pub fn updates(&mut self) -> Vec<u8> {
        let (provider, signer) = (&self.device.provider, &*self.device.signer);
        let bundle = self.group.self_update(provider, signer, LeafNodeParameters::default()).unwrap();
        bundle.into_commit().tls_serialize_detached().unwrap()
    }

    /// The pending Commit counts.
    /// The GroupInfo of the epoch that the group is in.
    pub fn group_info(&self) -> Vec<u8> {
        let Device { provider, signer, .. } = &self.device;
        let info = self.group.export_group_info(provider.crypto(), &**signer, true).unwrap();
        info.tls_serialize_detached().unwrap()
    }

    pub fn merges(&mut self) {
        self.group.merge_pending_commit(&self.device.provider).unwrap();
    }

    /// The pending Commit does not count.
    pub fn clears(&mut self) {
        self.group.clear_pending_commit(self.device.provider.storage()).unwrap();
    }

    pub fn says(&mut self, text: &str) -> Vec<u8> {
        let (provider, signer) = (&self.device.provider, &*self.device.signer);
        self.group.create_message(provider, signer, text.as_bytes()).unwrap().tls_serialize_detached().unwrap()
    }

    /// Takes a message in: a text, or nothing where it was a Commit.
    pub fn hears(&mut self, bytes: &[u8]) -> Option<String> {
        let heard = MlsMessageIn::tls_deserialize(&mut &*bytes).unwrap().try_into_protocol_message().unwrap();
        match self.group.process_message(&self.device.provider, heard).unwrap().into_content() {
            ProcessedMessageContent::ApplicationMessage(text) => Some(String::from_utf8(text.into_bytes()).unwrap()),
            ProcessedMessageContent::StagedCommitMessage(commit) => {
                self.group.merge_staged_commit(&self.device.provider, *commit).unwrap();
                None
            }
            _ => panic!("neither a text nor a Commit"),
        }
    }
}
