//! How bodies are read: objects are objects, `null` is the same as no field, and an error names the field.

use keypool_openapi::ProblemType;
use rstest::rstest;
use serde_json::{Value, json};

use crate::support::{Anywhere, TestServer};

/// The same value, each time with another of its objects turned into the array of its values.
fn with_an_array(value: &Value) -> Vec<Value> {
    let changed = |within: &Value, put: &dyn Fn(Value) -> Value| with_an_array(within).into_iter().map(put).collect();
    match value {
        Value::Object(fields) => {
            let mut all = vec![fields.values().cloned().collect()];
            for (name, within) in fields {
                let put = |other| {
                    let mut fields = fields.clone();
                    fields[name] = other;
                    Value::Object(fields)
                };
                all.extend::<Vec<_>>(changed(within, &put));
            }
            all
        }
        Value::Array(items) => {
            let mut all = Vec::new();
            for (at, within) in items.iter().enumerate() {
                let put = |other| {
                    let mut items = items.clone();
                    items[at] = other;
                    Value::Array(items)
                };
                all.extend::<Vec<_>>(changed(within, &put));
            }
            all
        }
        _ => Vec::new(),
    }
}

#[rstest]
#[tokio::test]
async fn an_array_in_place_of_an_object_is_refused_by_every_call(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let document = server.anyone().get("/openapi.json").await.ok();
    let mut tried = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        let example = &item["post"]["requestBody"]["content"]["application/json"]["example"];
        let mut body = example.clone();
        match path.as_str() {
            "/keypackages/upload" => {
                body["signature_key_changes"] =
                    json!([{ "ciphersuite": 1, "signature_key": "AQ==", "signature": "AQ==" }]);
            }
            "/messages/ack" => body["refused"] = json!([{ "id": 1, "reason": "invalid" }]),
            _ => {}
        }
        let path = path.replace("{group_id}", "ZnJpZW5kcw").replace("{device}", "laptop");
        for wrong in with_an_array(&body) {
            let answer = alice.post(&path, &wrong).await;
            answer.is_problem(400, ProblemType::MalformedRequest);
            assert!(
                answer.text.contains("invalid type: sequence, expected an object"),
                "{path} {wrong}: {}",
                answer.text
            );
            tried += 1;
        }
    }
    assert!(tried >= 14, "the document has examples of only {tried} objects");
}

#[rstest]
#[tokio::test]
async fn null_is_the_same_as_no_field(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let all_null = json!({ "target_user": "alice", "targets": null, "device": null, "ciphersuite": null,
        "group_id": null, "ttl": null });
    alice.post("/keypackages/reserve", &all_null).await.is_problem(404, ProblemType::PoolExhausted);
    let list = json!({ "targets": ["alice"], "target_user": null });
    alice.post("/keypackages/reserve", &list).await.is_problem(404, ProblemType::PoolExhausted);
    alice.post("/keypackages/revoke", &json!({ "refs": null, "all": true })).await.ok();
    alice.post("/keypackages/revoke", &json!({ "refs": ["ab".repeat(32)], "all": null })).await.ok();
    alice.post("/messages/ack", &json!({ "ids": null, "unreadable": null, "refused": null })).await.ok();
    alice.post("/devices/lookup", &json!({ "users": ["alice"], "removed": null })).await.ok();
    for nothing in [json!({ "refs": null, "all": null }), json!({})] {
        alice.post("/keypackages/revoke", &nothing).await.is_problem(400, ProblemType::MalformedRequest);
        alice
            .post("/keypackages/reserve", &json!({ "targets": null }))
            .await
            .is_problem(400, ProblemType::MalformedRequest);
    }
}

/// The document lists the optional fields of each call.
#[rstest]
#[tokio::test]
async fn null_is_the_same_as_no_field_in_every_call(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let document = server.anyone().get("/openapi.json").await.ok();
    let mut tried = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        let content = &item["post"]["requestBody"]["content"]["application/json"];
        let Some(name) = content["schema"]["$ref"].as_str() else { continue };
        let schema = &document["components"]["schemas"][name.rsplit('/').next().unwrap()];
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        let path = path.replace("{group_id}", "ZnJpZW5kcw").replace("{device}", "laptop");
        for field in schema["properties"].as_object().unwrap().keys().filter(|field| !required.contains(&json!(field)))
        {
            let (mut without, mut null) = (content["example"].clone(), content["example"].clone());
            without.as_object_mut().unwrap().remove(field);
            null[field] = Value::Null;
            let mut is_malformed = Vec::new();
            for body in [&without, &null] {
                is_malformed.push(alice.post(&path, body).await.json["type"] == "malformed-request");
            }
            assert_eq!(is_malformed[0], is_malformed[1], "{path} {null}");
            tried += 1;
        }
    }
    assert!(tried >= 12, "the document has only {tried} optional fields");
}

#[rstest]
#[tokio::test]
async fn an_error_names_the_field(#[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    let many = vec![json!({ "user": "bob", "device": "phone" }); 1_001];
    for (path, body, what) in [
        ("/keypackages/reserve", json!({ "targets": vec!["bob"; 101] }), "`targets`: an array has more than 100 items"),
        ("/keypackages/reserve", json!({ "targets": ["bob", "b\tb"] }), "`targets[1]`: "),
        ("/keypackages/reserve", json!({ "target_user": "bob", "ttl": "60" }), "`ttl`: invalid type: string"),
        (
            "/groups/ZnJpZW5kcw/messages",
            json!({ "message": "AQ==", "recipients": many }),
            "`recipients`: an array has more than 1000 items",
        ),
        (
            "/groups/ZnJpZW5kcw/messages",
            json!({ "message": "AQ==", "recipients": [{ "user": "bob" }] }),
            "`recipients[0]`: missing field `device`",
        ),
        (
            "/messages/ack",
            json!({ "refused": [{ "id": 1, "reason": "tired" }] }),
            "`refused[0].reason`: unknown variant",
        ),
        ("/keypackages/release", json!({}), "missing field `reservation_id`"),
    ] {
        let answer = alice.post(path, &body).await;
        answer.is_problem(400, ProblemType::MalformedRequest);
        let detail = answer.json["detail"].as_str().unwrap();
        assert!(detail.contains(&format!("the schema of this call: {what}")), "{detail}");
        assert!(detail.contains(" at line 1 column "), "{detail}");
    }
}

#[rstest]
#[tokio::test]
async fn only_the_encoding_of_a_body_matters_and_not_its_label(
    #[values(Anywhere::Postgres, Anywhere::Sqlite)] db: Anywhere,
) {
    let server = TestServer::start(db).await;
    let alice = server.anyone().registered("alice", "laptop").await;
    for encoding in ["gzip", "br", "zstd", "gzip, identity", "x"] {
        let answer = alice.with_header("content-encoding", encoding).reserve("alice").await;
        answer.is_problem(415, ProblemType::UnsupportedMediaType);
        assert!(answer.text.contains(&format!("Content-Encoding {encoding}")), "{}", answer.text);
    }
    for (header, value) in [
        ("content-encoding", "identity"),
        ("content-type", "application/x-www-form-urlencoded"),
        ("content-type", "application/gzip"),
    ] {
        alice.with_header(header, value).reserve("alice").await.is_problem(404, ProblemType::PoolExhausted);
    }
}
