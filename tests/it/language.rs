//! A PostgreSQL whose messages are in another language: the server still recognises its errors.

use std::fs;

use keypool_openapi::ProblemType;
use tempfile::NamedTempFile;

use crate::support::{Answer, Http, Place, Postgres, ServerProcess};

/// The answer to a request whose statement somebody cancels, and what the server has logged.
async fn cancelled(at: &Place, database: &Place) -> (Answer, String) {
    let log = NamedTempFile::new().unwrap();
    let stderr = log.reopen().unwrap();
    let server = ServerProcess::start_with(at, |command| {
        command.stderr(stderr);
    })
    .await;
    let alice = Http::new(&server.base).registered(&format!("alice-{}", server.id()), "laptop").await;
    let mut other = database.open();
    other.run("BEGIN; LOCK TABLE key_packages IN ACCESS EXCLUSIVE MODE");
    let asked = tokio::spawn(async move { alice.get("/keypackages/inventory").await });
    while other.waiting() < 1 {
        tokio::task::yield_now().await;
    }
    other.run("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'");
    let answer = asked.await.unwrap();
    other.run("ROLLBACK");
    drop(server);
    (answer, fs::read_to_string(log.path()).unwrap())
}

const WARNING: &str = "PostgreSQL answers in another language";

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_is_cancelled_in_german_can_be_tried_again() {
    let postgres = tokio::task::spawn_blocking(Postgres::in_german).await.unwrap();
    let database = Place::at(postgres.url("postgres"));
    let (answer, log) = cancelled(&database, &database).await;
    answer.is_problem(503, ProblemType::Unavailable);
    assert!(!log.contains(WARNING), "{log}");
}

/// The warning names the command for an account without the right to choose the language, and that command helps.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_may_not_choose_the_language_is_told_what_helps() {
    let postgres = tokio::task::spawn_blocking(Postgres::in_german).await.unwrap();
    let mut admin = Place::at(postgres.url("postgres")).open();
    admin.run("CREATE ROLE plain LOGIN");
    admin.run("CREATE DATABASE keypool OWNER plain");
    let database = Place::at(postgres.url("keypool"));
    let plain = Place::at(postgres.url("keypool").replace("postgres@", "plain@"));
    let (answer, log) = cancelled(&plain, &database).await;
    assert_eq!(answer.status, 500, "{}", answer.text);
    let remedy = "ALTER ROLE plain SET lc_messages = 'C'";
    let warning = log.lines().find(|line| line.contains(WARNING)).unwrap_or_else(|| panic!("{log}"));
    assert!(warning.contains(remedy) && warning.contains("de_DE.UTF-8"), "{warning}");
    admin.run(remedy);
    let (answer, log) = cancelled(&plain, &database).await;
    answer.is_problem(503, ProblemType::Unavailable);
    assert!(!log.contains(WARNING), "{log}");
}
