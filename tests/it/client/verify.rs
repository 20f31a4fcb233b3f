//! `keypool verify`: the number that two people compare.

use std::collections::BTreeSet;

use rstest::rstest;
use serde_json::Value;

use super::command::Shell;
use crate::support::{Anywhere, Running};

/// The number that one sees of another, for people and for programs alike.
fn number(of: &Shell, user: &str) -> String {
    let (text, json) = (of.text(&["verify", user]), of.json(&["verify", user]));
    let shown = text.lines().next().unwrap();
    assert_eq!(json["number"], shown);
    let is_group = |group: &str| group.len() == 5 && group.bytes().all(|byte| byte.is_ascii_digit());
    assert!(shown.split(' ').all(is_group) && shown.split(' ').count() == 12, "{shown}");
    shown.to_owned()
}

fn fingerprints(json: &Value) -> BTreeSet<String> {
    json["keys"].as_array().unwrap().iter().map(|key| key["fingerprint"].as_str().unwrap().to_owned()).collect()
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn two_people_compare_a_number_and_see_when_it_changes(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = Running::start(db).await;
    let alice = Shell::of(&server.base, "alice", &["--ciphersuite", "1", "--ciphersuite", "3"]);
    let (bob, _carol) = (Shell::of(&server.base, "bob", &[]), Shell::of(&server.base, "carol", &[]));
    let first = number(&alice, "bob");
    assert_eq!(number(&bob, "alice"), first);
    assert_ne!(number(&alice, "carol"), first);
    assert_eq!(number(&bob, "alice"), first, "it does not change by itself");
    let shown = bob.json(&["verify", "alice"]);
    assert_eq!(fingerprints(&shown).len(), 2, "a key of each ciphersuite: {shown}");
    for fingerprint in fingerprints(&shown) {
        assert!(bob.text(&["verify", "alice"]).contains(&fingerprint));
    }
    // Bob has seen Alice's key.
    bob.text(&["group", "create", "friends"]);
    bob.text(&["group", "invite", "friends", "alice"]);

    alice.text(&["rotate"]);
    let second = number(&alice, "bob");
    assert_ne!(second, first);
    assert_eq!(number(&bob, "alice"), second);
    let changed = bob.json(&["verify", "alice"]);
    assert!(fingerprints(&changed).is_disjoint(&fingerprints(&shown)), "{changed}");
    bob.text(&["group", "create", "others"]);
    let shown = bob.text(&["group", "invite", "others", "alice"]);
    let since = changed["keys"][0]["since"].as_str().unwrap();
    let told = format!("warning: alice/laptop has a new signature key since {since}; ask its owner");
    assert!(shown.contains(&told), "{shown}");

    let (_, said) = alice.failure(&["verify", "nobody"]);
    assert!(said.contains("nobody"), "{said}");
}
