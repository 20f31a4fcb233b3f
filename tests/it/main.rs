//! Integration tests over HTTP, against real servers and real databases.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![expect(clippy::print_stdout, reason = "what a failed test has to tell")]

mod audit;
mod availability;
mod body_limits;
mod browsers;
mod client;
mod clocks;
mod commits;
mod compatibility;
mod connections;
mod containers;
mod contract;
mod crash;
mod dashboard;
mod deployment;
mod devices;
mod enrolment;
mod history;
mod idempotency;
mod inventory;
mod json;
mod kills;
mod language;
mod lapse;
mod lifecycle;
mod limits;
mod log_checker;
mod messages;
mod metrics;
mod migrations;
mod model;
mod module_graph;
mod monitoring;
mod names;
mod operations;
mod operator;
mod outage;
mod plans;
mod problems;
mod process;
mod prose;
mod race;
mod readme;
mod reserve;
mod restore;
mod rights;
mod signature_keys;
mod startup;
mod strangers;
mod support;
mod systemd;
mod threat_model;
mod tokens;
mod upload;
