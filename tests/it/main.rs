//! Integration tests over HTTP, against real servers and real databases.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![expect(clippy::print_stdout, reason = "what a failed test has to tell")]

mod access;
mod bounds;
mod client;
mod clocks;
mod compatibility;
mod containers;
mod contract;
mod crash;
mod delivery;
mod deployment;
mod devices;
mod ended_tokens;
mod history;
mod idempotency;
mod intake;
mod kills;
mod lapse;
mod lifecycle;
mod limits;
mod migrations;
mod model;
mod operations;
mod outage;
mod plans;
mod problems;
mod process;
mod promises;
mod prose;
mod race;
mod readme;
mod restore;
mod signature_keys;
mod strangers;
mod support;
mod targets;
mod together;
mod trail;
mod upload;
mod wear;
