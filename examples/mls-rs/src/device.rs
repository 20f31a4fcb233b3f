//! A device: its calls of the server, and its group.

use std::time::Duration;

use anyhow::{Context, Result};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use mls_rs::{
    Client, ExtensionList, Group, MlsMessage,
    client_builder::MlsConfig,
    group::{CommitOutput, ReceivedMessage},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    http::Http,
    mls::{self, LIFETIME, others, proof},
};

/// A device with its group, if it is in one.
pub struct Device<C: MlsConfig> {
    client: Client<C>,
    http: Http,
    group: Option<Group<C>>,
}

/// A received message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// This device joined a group.
    Joined,
    /// Another member sent a text.
    Text(String),
    /// Another member changed the group, or proposed a change.
    Changed,
    /// A device could not use a Welcome or a Commit of this one.
    Unreadable(String),
}

/// Registers a device with KeyPackages that are valid for two weeks. With `in_the_open`, it sends Commits and proposals
/// as a `PublicMessage`.
///
/// # Errors
/// When the server cannot be reached, or refuses the device.
pub async fn register(
    http: reqwest::Client,
    server: &str,
    name: (&str, &str),
    in_the_open: bool,
) -> Result<Device<impl MlsConfig + use<>>> {
    register_with(http, server, name, (Some(LIFETIME), in_the_open)).await
}

/// Registers a device with KeyPackages of another lifetime; `None` is the default of mls-rs.
///
/// # Errors
/// When the server cannot be reached, or refuses the device.
pub async fn register_with(
    http: reqwest::Client,
    server: &str,
    (user, device): (&str, &str),
    (lifetime, in_the_open): (Option<Duration>, bool),
) -> Result<Device<impl MlsConfig + use<>>> {
    let mut http = Http::new(http, server);
    let answer = http.post("/devices", &json!({ "user": user, "device": device })).await?;
    http.token = Some(answer["token"].as_str().context("the answer has no token")?.to_owned());
    let client = mls::client(&format!("{user}/{device}"), lifetime, in_the_open)?;
    Ok(Device { client, http, group: None })
}

impl<C: MlsConfig> Device<C> {
    /// Uploads new KeyPackages. Returns the server's answer, with those that it refused and the reasons.
    ///
    /// # Errors
    /// When a KeyPackage cannot be made, or the call fails.
    pub async fn upload(&self, count: usize) -> Result<Value> {
        let mut packages = Vec::new();
        for _ in 0..count {
            // The message wraps the KeyPackage, as the server expects it.
            let message =
                self.client.generate_key_package_message(ExtensionList::default(), ExtensionList::default(), None)?;
            packages.push(STANDARD.encode(message.to_bytes()?));
        }
        self.http.post("/keypackages/upload", &json!({ "keypackages": packages })).await
    }

    /// Makes a group with this device as its only member. The server learns of it with its first Commit.
    ///
    /// # Errors
    /// When mls-rs fails.
    pub fn found(&mut self) -> Result<()> {
        self.group = Some(self.client.group_builder()?.build()?);
        Ok(())
    }

    /// Adds all devices of a user: reserves a KeyPackage of each, and commits. The server spends them with the Commit.
    ///
    /// # Errors
    /// When nothing can be reserved, or another Commit came first.
    pub async fn invite(&mut self, user: &str) -> Result<()> {
        let answer = self.http.post("/keypackages/reserve", &json!({ "target_user": user })).await?;
        let reservations = answer["reservations"].as_array().context("the answer has no reservations")?.clone();
        let group = self.group.as_mut().context("this device is in no group")?;
        let mut commit = group.commit_builder();
        for reservation in &reservations {
            commit = commit.add_member(MlsMessage::from_bytes(&bytes(&reservation["keypackage"])?)?)?;
        }
        let output = commit.build()?;
        let ids: Vec<_> = reservations.iter().map(|one| one["reservation_id"].clone()).collect();
        // The members before the Commit get it; the new ones get the Welcome.
        self.send_commit(&output, &ids).await
    }

    /// Replaces this device's keys in the group, and commits the proposals that it has.
    ///
    /// # Errors
    /// When another Commit came first.
    pub async fn update(&mut self) -> Result<()> {
        let group = self.group.as_mut().context("this device is in no group")?;
        let output = group.commit_builder().build()?;
        self.send_commit(&output, &[]).await
    }

    /// Sends a pending Commit, and applies it once the server has accepted it.
    async fn send_commit(&mut self, output: &CommitOutput, reservations: &[Value]) -> Result<()> {
        let group = self.group.as_mut().context("this device is in no group")?;
        // Only members of the next epoch can derive its proof: apply the Commit to a copy.
        let (proof_now, mut next) = (proof(group)?, group.clone());
        next.apply_pending_commit()?;
        let welcome = output.welcome_messages.first().map(MlsMessage::to_bytes).transpose()?;
        let body = json!({
            "commit": STANDARD.encode(output.commit_message.to_bytes()?),
            "welcome": welcome.map(|welcome| STANDARD.encode(welcome)),
            "proof": STANDARD.encode(proof_now),
            "next_proof_digest": STANDARD.encode(Sha256::digest(proof(&next)?)),
            "reservations": reservations,
            "recipients": recipients(group),
        });
        let path = path(group, "commits");
        match self.http.post(&path, &body).await {
            Ok(_) => {
                self.group = Some(next);
                Ok(())
            }
            Err(error) => {
                group.clear_pending_commit();
                Err(error)
            }
        }
    }

    /// Sends a text, as the `keypool` command reads it.
    ///
    /// # Errors
    /// When the device is in no group, or the call fails.
    pub async fn send(&mut self, text: &str) -> Result<()> {
        let group = self.group.as_mut().context("this device is in no group")?;
        let content = json!({ "text": text }).to_string();
        let message = group.encrypt_application_message(content.as_bytes(), Vec::new())?.to_bytes()?;
        self.post_message(&message).await
    }

    /// Proposes to leave: another member commits it.
    ///
    /// # Errors
    /// When the device is in no group, or the call fails.
    pub async fn leave(&mut self) -> Result<()> {
        let group = self.group.as_mut().context("this device is in no group")?;
        let message = group.propose_remove(group.current_member_index(), Vec::new())?.to_bytes()?;
        self.post_message(&message).await
    }

    async fn post_message(&self, message: &[u8]) -> Result<()> {
        let group = self.group.as_ref().context("this device is in no group")?;
        let body = json!({ "message": STANDARD.encode(message), "recipients": recipients(group) });
        self.http.post(&path(group, "messages"), &body).await.map(drop)
    }

    /// Processes the queue, and acknowledges what it has processed. A real client stores its state before that.
    ///
    /// # Errors
    /// When a call fails, or a message cannot be processed.
    pub async fn receive(&mut self) -> Result<Vec<Received>> {
        let page = self.http.get("/messages").await?;
        let (mut received, mut ids) = (Vec::new(), Vec::new());
        for message in page["messages"].as_array().context("the answer has no messages")? {
            ids.push(message["id"].clone());
            received.push(match message["kind"].as_str().unwrap_or_default() {
                "unreadable" => Received::Unreadable(message["refusal"]["reason"].to_string()),
                "welcome" => {
                    let welcome = MlsMessage::from_bytes(&bytes(&message["message"])?)?;
                    self.group = Some(self.client.join_group(None, &welcome, None)?.0);
                    Received::Joined
                }
                _ => self.process(&bytes(&message["message"])?)?,
            });
        }
        self.http.post("/messages/ack", &json!({ "ids": ids })).await?;
        Ok(received)
    }

    fn process(&mut self, message: &[u8]) -> Result<Received> {
        let group = self.group.as_mut().context("this device is in no group")?;
        Ok(match group.process_incoming_message(MlsMessage::from_bytes(message)?)? {
            ReceivedMessage::ApplicationMessage(content) => {
                let content: Value = serde_json::from_slice(content.data())?;
                // The `keypool` command also sends the group's name.
                content["text"].as_str().map_or(Received::Changed, |text| Received::Text(text.to_owned()))
            }
            _ => Received::Changed,
        })
    }

    /// The group's epoch, and the names of the other members; `None` in no group.
    #[must_use]
    pub fn group(&self) -> Option<(u64, Vec<String>)> {
        self.group.as_ref().map(|group| (group.current_epoch(), others(group)))
    }
}

/// A path of the group: its id is base64url there, and base64 everywhere else.
fn path<C: MlsConfig>(group: &Group<C>, what: &str) -> String {
    format!("/groups/{}/{what}", URL_SAFE_NO_PAD.encode(group.group_id()))
}

/// The other members, as the server names them. A device's name has no slash; a user's may have some.
fn recipients<C: MlsConfig>(group: &Group<C>) -> Vec<Value> {
    let device = |name: String| {
        let (user, device) = name.rsplit_once('/')?;
        Some(json!({ "user": user, "device": device }))
    };
    others(group).into_iter().filter_map(device).collect()
}

fn bytes(text: &Value) -> Result<Vec<u8>> {
    Ok(STANDARD.decode(text.as_str().context("the answer has no base64")?)?)
}
