//! The device that docs/libraries.md has for rfc9420, a Python library, as it is written there.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use keypool_client::Event;
use rstest::rstest;

use super::helpers::{invite, start};
use crate::{
    readme::blocks_of,
    support::{Anywhere, Owner, repository, tools},
};

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn a_device_on_rfc9420_is_invited_and_talks(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = start(db).await;
    let alice = Owner::of(&server, "alice").await;
    let page = fs::read_to_string(repository().join("docs/libraries.md")).unwrap();
    let program = tempfile::NamedTempFile::new().unwrap();
    fs::write(program.path(), blocks_of(&page, "```python rfc9420")).unwrap();
    let mut python = tools::python("python");
    python.arg(program.path()).env("SERVER", &server.base).env("KEYPOOL_USER", "bob").stdout(Stdio::piped());
    let mut bob = python.spawn().unwrap();
    let mut lines = BufReader::new(bob.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "4 accepted []", "what rfc9420 makes is good for the server");

    let group = alice.membership().create_named_group("friends").unwrap();
    invite(&alice, &group, &["bob"]).await;
    let incoming = alice.membership().receive(30).await.unwrap();
    alice.membership().done(&incoming).unwrap();
    let [hello] = incoming.as_slice() else { panic!("{incoming:?}") };
    assert_eq!(hello.event, Event::Text { sender: "bob/phone".to_owned(), text: "hello".to_owned() });
    alice.membership().send(&group.group_id, "hello, Bob").await.unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "hello, Bob");
    assert!(bob.wait().unwrap().success());
}
