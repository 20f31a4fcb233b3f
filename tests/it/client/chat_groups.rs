//! What people see in `keypool chat` when members fall behind, come back, come in, are removed and leave.

use rstest::rstest;
use serde_json::json;

use super::chat::{Person, blocking, two_people};
use crate::support::{Anywhere, Http, Running};

fn loses_its_queue(base: &str, person: &Person) -> usize {
    let token = person.runs(&["token"])["token"].as_str().unwrap().to_owned();
    let http = Http::new(base).with_token(&token);
    tokio::runtime::Handle::current().block_on(async {
        let page = http.get("/messages?limit=100").await.ok();
        let ids: Vec<_> = page["messages"].as_array().unwrap().iter().map(|one| one["id"].clone()).collect();
        http.post("/messages/ack", &json!({ "ids": ids })).await.ok();
        ids.len()
    })
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn people_see_who_falls_behind_and_who_comes_back(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = Running::start(db).await;
    let base = server.base.clone();
    blocking(move || {
        let (alice, bob) = two_people(&base);
        alice.runs(&["group", "update", "friends"]);
        assert_eq!(loses_its_queue(&base, &bob), 1);
        let (alices, bobs) = (alice.chats(&[]), bob.chats(&[]));
        alices.types("are you there?");
        bobs.sees("warning: this device missed a change of the group, and cannot read what follows");
        bobs.sees("this device is back in the group; what was sent meanwhile stays unread");
        alices.sees("bob/laptop fell behind and is back");
        bobs.types("now I am");
        alices.sees("bob/laptop: now I am");
        alices.quits();
        bobs.quits();
    })
    .await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn people_see_new_devices_come_in_and_devices_go(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = Running::start(db).await;
    let base = server.base.clone();
    blocking(move || {
        let (alice, bob) = two_people(&base);
        let token = bob.runs(&["token"])["token"].as_str().unwrap().to_owned();
        let (alices, bobs) = (alice.chats(&[]), bob.chats(&[]));
        let phone = Person::new();
        let init = ["init", "--server", &base, "--user", "bob", "--device", "phone", "--user-token", &token];
        phone.runs(&init);
        alices.sees("bob/phone is new, or has lost what it had of the group, and asks to be let in");
        bobs.sees("warning: your device bob/phone was registered. If that was not you");
        // One of the two brings it in, and both see it.
        for screen in [&alices, &bobs] {
            screen.sees("/laptop added bob/phone");
        }
        phone.runs(&["receive"]);
        let phones = phone.chats(&[]);
        phones.types("on the way");
        alices.sees("bob/phone: on the way");

        // Two things at once are done one after the other.
        alices.types("/remove bob/phone");
        alices.types("only the phone");
        alices.sees("bob/phone removed.");
        phones.sees("this device is no longer in the group");
        phones.sees("removed by alice/laptop");
        bobs.sees("alice/laptop removed bob/phone");
        bobs.sees("alice/laptop: only the phone");
        alices.types("/remove bob/phone");
        alices.sees("bob/phone is not in \"friends\"");
        alices.types("/remove alice");
        alices.sees("this device itself: type /leave to leave the group");
        alices.types("/history");
        alices.sees("Came back");
        phones.types("hello?");
        phones.sees("not sent: this device is no longer in friends");
        phones.quits();
        alices.quits();
        bobs.quits();
    })
    .await;
}

#[rstest]
#[tokio::test(flavor = "multi_thread")]
async fn people_who_both_leave_are_both_rid_of_the_group(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = Running::start(db).await;
    let base = server.base.clone();
    blocking(move || {
        let (alice, bob) = two_people(&base);
        let alices = alice.chats(&[]);
        alices.types("/leave");
        alices.sees("The others are asked to let this device go.");
        alices.types("one more thing");
        alices.sees("this device has asked to leave the group \"friends\"");
        alices.types("/invite bob");
        alices.sees("that did not work");
        let bobs = bob.chats(&[]);
        bobs.types("/leave");
        alices.sees("this device is no longer in the group");
        alices.quits();
        bobs.quits();
        for person in [&alice, &bob] {
            person.runs(&["receive"]);
            assert_eq!(person.runs(&["group", "list"]), json!([]));
        }
        alice.runs(&["group", "create", "others"]);
        alice.runs(&["group", "forget", "others"]);
        assert_eq!(alice.runs(&["group", "list"]), json!([]));
    })
    .await;
}
