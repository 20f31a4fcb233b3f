//! A hostile member with a stack of its own, which signs anything.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use openmls::prelude::{
    BasicCredential, CredentialWithKey, ExternalCommitBuilder, GroupId, KeyPackage, LeafNodeIndex, LeafNodeParameters,
    MIXED_PLAINTEXT_WIRE_FORMAT_POLICY, MlsGroup, MlsGroupCreateConfig, MlsGroupJoinConfig, MlsMessageBodyIn,
    MlsMessageIn, MlsMessageOut, NewSignerBundle, OpenMlsProvider, ProcessedMessageContent, StagedWelcome,
};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tls_codec::{Deserialize, Serialize};

use super::{Answer, Http, TestServer, decode, encode};

const SUITE: openmls::prelude::Ciphersuite =
    openmls::prelude::Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

/// A registered user whose device is `laptop`, with a signature key that the server knows.
pub struct Insider {
    user: String,
    pub http: Http,
    provider: OpenMlsRustCrypto,
    signer: SignatureKeyPair,
    group: Option<MlsGroup>,
}

fn new_signer() -> SignatureKeyPair {
    SignatureKeyPair::new(SUITE.signature_algorithm()).unwrap()
}

fn credential(identity: &str, signer: &SignatureKeyPair) -> CredentialWithKey {
    CredentialWithKey {
        credential: BasicCredential::new(identity.as_bytes().to_vec()).into(),
        signature_key: signer.to_public_vec().into(),
    }
}

fn bytes(message: &MlsMessageOut) -> Vec<u8> {
    message.tls_serialize_detached().unwrap()
}

impl Insider {
    /// Registers, and uploads honest KeyPackages.
    pub async fn of(server: &TestServer, user: &str) -> Self {
        let http = server.anyone().registered(user, "laptop").await;
        let (provider, signer) = (OpenMlsRustCrypto::default(), new_signer());
        let insider = Self { user: user.to_owned(), http, provider, signer, group: None };
        let package = |_| bytes(&MlsMessageOut::from(insider.key_package(&insider.name(), &insider.signer)));
        insider.http.uploaded(&(0..4).map(package).collect::<Vec<_>>()).await;
        insider
    }

    pub fn name(&self) -> String {
        format!("{}/laptop", self.user)
    }

    /// A KeyPackage that says it is of somebody.
    fn key_package(&self, identity: &str, signer: &SignatureKeyPair) -> KeyPackage {
        let bundle = KeyPackage::builder().build(SUITE, &self.provider, signer, credential(identity, signer)).unwrap();
        bundle.into_key_package()
    }

    /// A KeyPackage that says it is of somebody, with a key that is none of theirs, as it travels, and its ref.
    pub fn forged_key_package(&self, identity: &str) -> (Vec<u8>, Vec<u8>) {
        let package = self.key_package(identity, &new_signer());
        let hash = package.hash_ref(self.provider.crypto()).unwrap().as_slice().to_vec();
        (bytes(&MlsMessageOut::from(package)), hash)
    }

    fn group(&mut self) -> &mut MlsGroup {
        self.group.as_mut().unwrap()
    }

    /// Joins the group whose Welcome is in its queue.
    pub async fn joins(&mut self) {
        let page = self.http.get("/messages").await.ok();
        let messages = page["messages"].as_array().unwrap();
        let welcome = messages.iter().find(|message| message["kind"] == "welcome").unwrap();
        let welcome = decode(welcome["message"].as_str().unwrap());
        let message = MlsMessageIn::tls_deserialize(&mut welcome.as_slice()).unwrap().extract();
        let MlsMessageBodyIn::Welcome(welcome) = message else { panic!("no Welcome") };
        let config = MlsGroupJoinConfig::builder().use_ratchet_tree_extension(true).build();
        let staged = StagedWelcome::new_from_welcome(&self.provider, &config, welcome, None).unwrap();
        self.group = Some(staged.into_group(&self.provider).unwrap());
    }

    /// Applies the Commits of other members that are in its queue.
    pub async fn follows(&mut self) {
        let page = self.http.get("/messages").await.ok();
        for message in page["messages"].as_array().unwrap().iter().filter(|message| message["kind"] == "commit") {
            let commit = decode(message["message"].as_str().unwrap());
            let commit = MlsMessageIn::tls_deserialize(&mut commit.as_slice()).unwrap();
            let (provider, group) = (&self.provider, self.group.as_mut().unwrap());
            let processed = group.process_message(provider, commit.try_into_protocol_message().unwrap()).unwrap();
            let ProcessedMessageContent::StagedCommitMessage(commit) = processed.into_content() else {
                panic!("no Commit")
            };
            group.merge_staged_commit(provider, *commit).unwrap();
        }
    }

    /// From now on, sends Commits and proposals as a PublicMessage.
    pub fn commits_in_the_open(&mut self) {
        let config = MlsGroupJoinConfig::builder()
            .wire_format_policy(MIXED_PLAINTEXT_WIRE_FORMAT_POLICY)
            .use_ratchet_tree_extension(true)
            .build();
        let Self { provider, group, .. } = self;
        group.as_mut().unwrap().set_configuration(provider.storage(), &config).unwrap();
    }

    /// Makes a group of its own, whose Welcomes bring no tree.
    pub fn founds_without_trees(&mut self) {
        let name = self.name();
        self.founds("treeless", &name, &MlsGroupCreateConfig::builder().use_ratchet_tree_extension(false).build());
    }

    /// Makes a group of its own, in which its leaf says that it is somebody else.
    pub fn founds_as(&mut self, identity: &str) {
        self.founds(identity, identity, &MlsGroupCreateConfig::builder().use_ratchet_tree_extension(true).build());
    }

    fn founds(&mut self, id: &str, identity: &str, config: &MlsGroupCreateConfig) {
        let (id, credential) = (GroupId::from_slice(id.as_bytes()), credential(identity, &self.signer));
        let group = MlsGroup::new_with_group_id(&self.provider, &self.signer, config, id, credential).unwrap();
        self.group = Some(group);
    }

    /// Adds a user whose KeyPackage the server hands out, as an honest member does.
    pub async fn invites(&mut self, user: &str) {
        self.invites_with(user, &[], |_| ()).await;
    }

    /// Adds a user, and has something done to the Welcome.
    pub async fn invites_with(&mut self, user: &str, recipients: &[&str], change: impl FnOnce(&mut Vec<u8>)) {
        let reservation = self.http.reserved(user).await;
        let package = decode(reservation["keypackage"].as_str().unwrap());
        let message = MlsMessageIn::tls_deserialize(&mut package.as_slice()).unwrap().extract();
        let MlsMessageBodyIn::KeyPackage(package) = message else { panic!("no KeyPackage") };
        let package = package.validate(self.provider.crypto(), openmls::prelude::ProtocolVersion::Mls10).unwrap();
        let Self { provider, signer, group, .. } = self;
        let (commit, welcome, _) = group.as_mut().unwrap().add_members(provider, signer, &[package]).unwrap();
        let mut welcome = bytes(&welcome);
        change(&mut welcome);
        let body = json!({
            "welcome": encode(&welcome), "reservations": [reservation["reservation_id"]],
            "recipients": devices(recipients),
        });
        self.commits(&bytes(&commit), body).await.ok();
        self.merges();
    }

    fn merges(&mut self) {
        self.group.as_mut().unwrap().merge_pending_commit(&self.provider).unwrap();
    }

    /// Removes a member, as an honest member does.
    pub async fn removes(&mut self, name: &str, recipients: &[&str]) {
        let index = self.index_of(name);
        let Self { provider, signer, group, .. } = self;
        let (commit, ..) = group.as_mut().unwrap().remove_members(provider, signer, &[index]).unwrap();
        self.commits(&bytes(&commit), json!({ "recipients": devices(recipients) })).await.ok();
        self.merges();
    }

    fn index_of(&mut self, name: &str) -> LeafNodeIndex {
        let mut members = self.group().members();
        members.find(|member| member.credential.serialized_content() == name.as_bytes()).unwrap().index
    }

    /// Commits new keys, as an honest member does.
    pub async fn updates(&mut self, recipients: &[&str]) {
        self.updates_with(recipients, |_| ()).await;
    }

    /// Commits new keys, and has something done to the Commit.
    pub async fn updates_with(&mut self, recipients: &[&str], change: impl FnOnce(&mut Vec<u8>)) {
        let Self { provider, signer, group, .. } = self;
        let bundle = group.as_mut().unwrap().self_update(provider, signer, LeafNodeParameters::default()).unwrap();
        let mut commit = bytes(bundle.commit());
        change(&mut commit);
        self.commits(&commit, json!({ "recipients": devices(recipients) })).await.ok();
        self.merges();
    }

    /// Commits new keys, and asks for a proof that nobody has.
    pub async fn names_a_wrong_digest(&mut self, recipients: &[&str]) {
        let Self { provider, signer, group, .. } = self;
        let bundle = group.as_mut().unwrap().self_update(provider, signer, LeafNodeParameters::default()).unwrap();
        let body = json!({
            "commit": encode(&bytes(bundle.commit())), "proof": encode(&self.proof()),
            "next_proof_digest": encode(&[0; 32]), "recipients": devices(recipients),
        });
        self.http.post(&self.path("commits"), &body).await.ok();
        self.merges();
    }

    /// Proposes to leave.
    pub async fn leaves(&mut self, recipients: &[&str]) {
        let Self { provider, signer, group, .. } = self;
        let proposal = group.as_mut().unwrap().leave_group(provider, signer).unwrap();
        self.sends(&bytes(&proposal), recipients).await;
    }

    /// The messages in its queue: the kind of each, and the refusal in a notice.
    pub async fn finds(&self) -> Vec<(String, Value)> {
        let page = self.http.get("/messages").await.ok();
        let messages = page["messages"].as_array().unwrap().iter();
        messages.map(|one| (one["kind"].as_str().unwrap().to_owned(), one["refusal"].clone())).collect()
    }

    /// Adds a device that says it is somebody's, with a key of the insider's own.
    pub async fn adds_ghost(&mut self, identity: &str, recipients: &[&str]) {
        let ghost = self.key_package(identity, &new_signer());
        let Self { provider, signer, group, .. } = self;
        let (commit, _, _) = group.as_mut().unwrap().add_members(provider, signer, &[ghost]).unwrap();
        self.commits(&bytes(&commit), json!({ "recipients": devices(recipients) })).await.ok();
    }

    /// Commits a path whose leaf has another identity.
    pub async fn renames_itself(&mut self, identity: &str, recipients: &[&str]) {
        let parameters = LeafNodeParameters::builder().with_credential_with_key(credential(identity, &self.signer));
        let Self { provider, signer, group, .. } = self;
        let bundle = group.as_mut().unwrap().self_update(provider, signer, parameters.build()).unwrap();
        self.commits(&bytes(bundle.commit()), json!({ "recipients": devices(recipients) })).await.ok();
    }

    /// Commits a path whose leaf has another signature key, which the server does not know.
    pub async fn swaps_its_key(&mut self, recipients: &[&str]) {
        let (name, new) = (self.name(), new_signer());
        let bundle = NewSignerBundle { signer: &new, credential_with_key: credential(&name, &new) };
        let Self { provider, signer, group, .. } = self;
        let group = group.as_mut().unwrap();
        let bundle =
            group.self_update_with_new_signer(provider, signer, bundle, LeafNodeParameters::default()).unwrap();
        self.commits(&bytes(bundle.commit()), json!({ "recipients": devices(recipients) })).await.ok();
    }

    /// Proposes a leaf of its own with another signature key.
    pub async fn proposes_another_key(&mut self, recipients: &[&str]) {
        let (name, new) = (self.name(), new_signer());
        let bundle = NewSignerBundle { signer: &new, credential_with_key: credential(&name, &new) };
        let Self { provider, signer, group, .. } = self;
        let group = group.as_mut().unwrap();
        let (proposal, _) =
            group.propose_self_update_with_new_signer(provider, signer, bundle, LeafNodeParameters::default()).unwrap();
        self.sends(&bytes(&proposal), recipients).await;
    }

    /// Comes back by an external Commit from a GroupInfo, as itself, with its own signature key or with another one.
    pub async fn comes_back(&mut self, info: &[u8], with_own_key: bool, recipients: &[&str]) -> Answer {
        let name = self.name();
        let other = new_signer();
        let signer = if with_own_key { &self.signer } else { &other };
        let message = MlsMessageIn::tls_deserialize(&mut &*info).unwrap().extract();
        let MlsMessageBodyIn::GroupInfo(info) = message else { panic!("no GroupInfo") };
        // In a store of its own: in the insider's there is the group already.
        let provider = OpenMlsRustCrypto::default();
        let (group, bundle) = ExternalCommitBuilder::new()
            .build_group(&provider, info, credential(&name, signer))
            .unwrap()
            .load_psks(provider.storage())
            .unwrap()
            .build(provider.rand(), provider.crypto(), signer, |_| true)
            .unwrap()
            .finalize(&provider)
            .unwrap();
        let next = group.export_secret(provider.crypto(), "keypool commit proof", &[], 32).unwrap();
        let info = group.export_group_info(provider.crypto(), signer, true).unwrap();
        let body = json!({
            "commit": encode(&bytes(bundle.commit())), "recipients": devices(recipients),
            "group_info": encode(&bytes(&info)), "members": devices(&[recipients, &[&name]].concat()),
            "next_proof_digest": encode(&Sha256::digest(next)),
        });
        self.http.post(&self.path("commits"), &body).await
    }

    /// The GroupInfo of its group, as the insider makes it.
    pub fn group_info(&self) -> Vec<u8> {
        let group = self.group.as_ref().unwrap();
        bytes(&group.export_group_info(self.provider.crypto(), &self.signer, true).unwrap())
    }

    /// Says something in its group.
    pub async fn says(&mut self, text: &str, recipients: &[&str]) {
        let Self { provider, signer, group, .. } = self;
        let message = group.as_mut().unwrap().create_message(provider, signer, text.as_bytes()).unwrap();
        self.sends(&bytes(&message), recipients).await;
    }

    /// Says something in its group, with another epoch in the header.
    pub async fn says_in_epoch(&mut self, text: &str, epoch: u64, recipients: &[&str]) {
        let Self { provider, signer, group, .. } = self;
        let message = group.as_mut().unwrap().create_message(provider, signer, text.as_bytes()).unwrap();
        let mut message = bytes(&message);
        // Version, wire format, and the group's id with its length come first.
        let at = 4 + 1 + self.group.as_ref().unwrap().group_id().as_slice().len();
        message[at..at + 8].copy_from_slice(&epoch.to_be_bytes());
        self.sends(&message, recipients).await;
    }

    async fn sends(&self, message: &[u8], recipients: &[&str]) {
        let body = json!({ "message": encode(message), "recipients": devices(recipients) });
        self.http.post(&self.path("messages"), &body).await.ok();
    }

    fn path(&self, what: &str) -> String {
        let id = URL_SAFE_NO_PAD.encode(self.group.as_ref().unwrap().group_id().as_slice());
        format!("/groups/{id}/{what}")
    }

    /// The proof of membership in the epoch.
    fn proof(&self) -> Vec<u8> {
        let group = self.group.as_ref().unwrap();
        group.export_secret(self.provider.crypto(), "keypool commit proof", &[], 32).unwrap()
    }

    /// Sends a Commit to the server, which takes it: it sees no leaf.
    async fn commits(&mut self, commit: &[u8], mut body: Value) -> Answer {
        let proof = self.proof();
        let crypto = OpenMlsRustCrypto::default();
        let pending = self.group().pending_commit().unwrap();
        let next = pending.export_secret(crypto.crypto(), "keypool commit proof", &[], 32).unwrap();
        body["commit"] = json!(encode(commit));
        body["proof"] = json!(encode(&proof));
        body["next_proof_digest"] = json!(encode(&Sha256::digest(next)));
        self.http.post(&self.path("commits"), &body).await
    }
}

fn devices(names: &[&str]) -> Value {
    let device = |name: &&str| {
        let (user, device) = name.split_once('/').unwrap();
        json!({ "user": user, "device": device })
    };
    names.iter().map(device).collect()
}
