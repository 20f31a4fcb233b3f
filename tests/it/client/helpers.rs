//! Devices with the client library, and groups of them.

use std::collections::BTreeSet;

use keypool_client::{
    Event, Group, Incoming, Invitation, KeyPackagePoolConfig, MlsClient, Result, openmls::prelude::MlsGroup,
};
use keypool_openapi::{DeviceOf, UserName};
use keypool_server::config::Limits;

use crate::support::{Owner, Proxy, TestServer, Where, new_device};

/// A server without request limits.
pub async fn start(db: impl Into<Where>) -> TestServer {
    TestServer::start_with(db, |config| config.limits = Limits::Off).await
}

/// A user whose requests go through a proxy.
pub async fn behind_a_proxy(server: &TestServer, name: &str) -> (Proxy, Owner) {
    let proxy = Proxy::before(&server.base).await;
    let (owner, _) = Owner::with(server, &new_device(&proxy.base, name), KeyPackagePoolConfig::default()).await;
    (proxy, owner)
}

pub fn user(name: &str) -> UserName {
    name.parse().unwrap()
}

/// A user's first device.
pub fn device(user_name: &str) -> DeviceOf {
    DeviceOf { user: user(user_name), device: "laptop".parse().unwrap() }
}

/// The names of users' first devices.
pub fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(|name| format!("{name}/laptop")).collect()
}

/// A group of users with a device each. All have processed their queues.
pub async fn group_of(server: &TestServer, users: &[&str]) -> (Group, Vec<Owner>) {
    let mut owners = Vec::new();
    for name in users {
        owners.push(Owner::of(server, name).await);
    }
    let group = owners[0].membership().create_named_group("friends").unwrap();
    invite(&owners[0], &group, &users[1..]).await;
    for owner in &owners {
        owner.hears().await;
    }
    (group, owners)
}

/// Adds users to a group, and answers the devices that were added.
pub async fn invite(by: &Owner, group: &Group, users: &[&str]) -> BTreeSet<String> {
    let users: Vec<_> = users.iter().map(|name| user(name)).collect();
    let invited = by.membership().invite(&group.group_id, &users).await.unwrap();
    assert_eq!(invited.missing, []);
    invited.added.iter().map(|one| format!("{}/{}", one.user, one.device)).collect()
}

pub fn members(owner: &Owner, group: &Group) -> BTreeSet<String> {
    let members = owner.membership().members(&group.group_id).unwrap();
    members.iter().map(|one| format!("{}/{}", one.user, one.device)).collect()
}

pub fn epoch(owner: &Owner, group: &Group) -> u64 {
    owner.membership().groups().unwrap().iter().find(|one| one.id == group.id).unwrap().epoch
}

/// The event of a change by a member's first device that left the group's name as it was.
pub fn changed_by(user: &str) -> Event {
    Event::Changed { by: device(user).to_string(), name: None }
}

/// The received items, with the notices for people.
pub async fn heard(owner: &Owner) -> Vec<Incoming> {
    let incoming = owner.membership().receive(0).await.unwrap();
    owner.membership().done(&incoming).unwrap();
    incoming
}

/// Bob's other stack has invited Carol: Alice and Carol hear who did it, and Carol says hello.
pub async fn bob_invited_carol(alice: &Owner, carol: &Owner, group: &Group) {
    let heard = alice.hears().await;
    let [Event::Members { by, added, .. }] = heard.as_slice() else { panic!("{heard:?}") };
    assert_eq!((by.as_str(), added.as_slice()), ("bob/laptop", &["carol/laptop".to_owned()][..]));
    let joined = carol.hears().await;
    assert!(matches!(&joined[0], Event::Joined { by } if by.user == user("bob")), "{joined:?}");
    carol.membership().send(&group.group_id, "hello, all").await.unwrap();
}

/// Adds a user to a group whose messages an application delivers: its delivery service accepts each Commit.
pub async fn invited(client: &MlsClient, group: &mut MlsGroup, user: &UserName) -> Result<Invitation> {
    let invitation = client.prepare_invitation(group, user).await?;
    assert_eq!(client.confirm_invitation(group, &invitation).await?, []);
    Ok(invitation)
}
