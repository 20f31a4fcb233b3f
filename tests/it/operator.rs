//! The operator's token: the calls that it may make, and those that it may not.

use keypool_openapi::ProblemType;
use keypool_server::config::{AdminToken, Config};
use reqwest::Method;
use rstest::rstest;
use serde_json::json;

use crate::support::{Database, Device, Http, TestServer};

pub const ADMIN: &str = "correct horse battery staple, and a tail";

pub fn with_an_admin(config: &mut Config) {
    config.admin_token = Some(AdminToken::from(ADMIN));
}

async fn refused(callers: &[(&Http, u16, ProblemType)], method: Method, path: &str) {
    for (caller, status, kind) in callers {
        caller.try_send(method.clone(), path, None).await.unwrap().is_problem(*status, *kind);
    }
}

#[rstest]
#[tokio::test]
async fn the_operator_has_a_token_of_its_own(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, with_an_admin).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let phone = alice.registered("alice", "phone").await;
    let bob = server.anyone().registered("bob", "phone").await;
    alice.uploaded(&Device::new("alice", "laptop").key_packages(8)).await;
    phone.uploaded(&Device::new("alice", "phone").key_packages(3)).await;
    bob.uploaded(&[Device::new("bob", "phone").last_resort()]).await;
    bob.post("/keypackages/reserve", &json!({"target_user": "alice", "device": "phone"})).await.ok();
    let admin = server.anyone().with_token(ADMIN);
    let wrong = server.anyone().with_token(&ADMIN[1..]);

    let low = admin.get("/admin/pools").await.ok()["pools"].clone();
    let low: Vec<_> =
        low.as_array().unwrap().iter().map(|pool| [&pool["user"], &pool["device"], &pool["fresh"]]).collect();
    let (a, b, p) = (json!("alice"), json!("bob"), json!("phone"));
    assert_eq!(low, [[&b, &p, &json!(0)], [&a, &p, &json!(2)]]);
    assert_eq!(admin.get("/admin/pools?limit=1").await.ok()["pools"].as_array().unwrap().len(), 1);

    let trail = admin.get("/keypackages/audit?user=alice").await.ok();
    assert_eq!(trail["events"].as_array().unwrap().len(), 12);
    assert_eq!(trail["events"][0]["actor"], json!({"user": "bob", "device": "phone"}));
    admin.get("/keypackages/audit").await.is_problem(400, ProblemType::MalformedRequest);
    admin.get("/keypackages/audit?user=nobody").await.is_problem(404, ProblemType::UnknownUser);
    alice.get("/keypackages/audit?user=alice").await.is_problem(403, ProblemType::Forbidden);

    let devices = admin.get("/users/alice/devices").await.ok()["devices"].clone();
    let names: Vec<_> = devices.as_array().unwrap().iter().map(|one| &one["device"]).collect();
    assert_eq!(names, ["laptop", "phone"]);
    let removed = admin.delete("/admin/users/alice/devices/phone").await.ok();
    assert_eq!(removed["revoked"], 3);
    phone.get("/keypackages/status").await.is_problem(401, ProblemType::Unauthenticated);
    let newest = admin.get("/keypackages/audit?user=alice&limit=1").await.ok()["events"][0].clone();
    assert_eq!((&newest["action"], &newest["actor"]), (&json!("revoke"), &json!(null)));
    admin.delete("/admin/users/alice/devices/phone").await.is_problem(404, ProblemType::UnknownDevice);

    let callers = [
        (&alice, 403, ProblemType::Forbidden),
        (&wrong, 401, ProblemType::Unauthenticated),
        (&server.anyone(), 401, ProblemType::Unauthenticated),
    ];
    refused(&callers, Method::GET, "/admin/pools").await;
    refused(&callers, Method::DELETE, "/admin/users/alice/devices/laptop").await;
    alice.status().await;
}

#[rstest]
#[tokio::test]
async fn the_operator_is_no_device(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, with_an_admin).await;
    server.anyone().registered("alice", "laptop").await;
    let admin = server.anyone().with_token(ADMIN);
    let callers = [(&admin, 403, ProblemType::Forbidden)];
    for path in ["/keypackages/status", "/keypackages/inventory"] {
        refused(&callers, Method::GET, path).await;
    }
    for path in ["upload", "reserve", "spend", "release", "revoke"] {
        refused(&callers, Method::POST, &format!("/keypackages/{path}")).await;
    }
    refused(&callers, Method::DELETE, "/devices/laptop").await;
    refused(&callers, Method::POST, "/devices/laptop/token").await;
    admin.register("alice", "phone").await.is_problem(403, ProblemType::Forbidden);
    admin.register("nobody", "phone").await.is_problem(403, ProblemType::Forbidden);
}

#[rstest]
#[tokio::test]
async fn without_an_admin_token_nobody_is_the_operator(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start(db).await;
    for token in [ADMIN, "null"] {
        let answer = server.anyone().with_token(token).get("/admin/pools").await;
        answer.is_problem(401, ProblemType::Unauthenticated);
    }
}
