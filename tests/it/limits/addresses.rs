//! Requests without a known token are limited by the address that a proxy names.

use jiff::SignedDuration;
use keypool_openapi::ProblemType;
use keypool_server::config::Config;
use keypool_validation::token::Token;
use reqwest::header::{HeaderMap, HeaderValue};
use rstest::rstest;

use crate::support::{Database, Http, TestServer, builder};

/// The number of requests that an address may send at once.
const BURST: usize = 100;

fn behind_a_proxy(config: &mut Config) {
    config.trusted_proxies = vec!["127.0.0.0/8".to_owned()].try_into().unwrap();
}

/// A caller whose requests carry this `X-Forwarded-For`.
fn from(server: &TestServer, forwarded: &str) -> Http {
    let headers =
        HeaderMap::from_iter([("x-forwarded-for".parse().unwrap(), HeaderValue::from_str(forwarded).unwrap())]);
    Http::over(builder().default_headers(headers).build().unwrap(), &server.base)
}

/// Shows so many tokens that look like real ones, and answers the last status.
async fn tries_tokens(caller: &Http, tokens: usize) -> u16 {
    let mut status = 0;
    for _ in 0..tokens {
        let token = Token::generate().unwrap();
        status = caller.with_token(token.reveal()).get("/keypackages/status").await.status;
    }
    status
}

#[rstest]
#[tokio::test]
async fn who_tries_tokens_is_shut_out_and_nobody_else(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, behind_a_proxy).await;
    let (thief, other) = (from(&server, "1.1.1.1, 203.0.113.7"), from(&server, "203.0.113.8"));
    let neighbour = from(&server, "203.0.113.7").registered("alice", "laptop").await;
    neighbour.status().await;
    assert_eq!(tries_tokens(&thief, BURST).await, 401);
    // The addresses before it do not count.
    assert_eq!(tries_tokens(&from(&server, "2.2.2.2, 203.0.113.7"), 1).await, 429);
    let token = Token::generate().unwrap();
    let refused = thief.with_token(token.reveal()).get("/keypackages/status").await;
    refused.is_problem(429, ProblemType::TooManyRequests);
    assert_eq!(refused.header("retry-after"), Some("1"));
    // A device that is known at the same address is served.
    neighbour.status().await;
    assert_eq!(tries_tokens(&other, 1).await, 401);
    server.advance(SignedDuration::from_secs(1));
    assert_eq!(tries_tokens(&thief, 1).await, 401);
}

#[rstest]
#[tokio::test]
async fn who_registers_without_end_is_shut_out(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let server = TestServer::start_with(db, behind_a_proxy).await;
    let crowd = from(&server, "203.0.113.7");
    for number in 0..=BURST {
        crowd.registered(&format!("user-{number}"), "phone").await;
    }
    crowd.register("one-more", "phone").await.is_problem(429, ProblemType::TooManyRequests);
    // A known device registers a further device without being limited.
    let known = from(&server, "203.0.113.8").registered("bob", "phone").await;
    known.status().await;
    crowd.with_token(known.token.as_deref().unwrap()).registered("bob", "tablet").await;
}

#[rstest]
#[tokio::test]
async fn nobody_is_limited_by_address_where_no_proxy_is_named(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    assert_eq!(tries_tokens(&from(&server, "203.0.113.7"), 3 * BURST).await, 401);
}
