//! Tests of the program `keypool-verify` with real files, and over HTTP.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod audit;
mod files;
mod program;
mod web;

#[path = "../../../transparency/tests/it/support.rs"]
#[expect(dead_code, reason = "the tests of the crate use more of it")]
mod support;
#[path = "../../../transparency/tests/it/world.rs"]
#[expect(dead_code, reason = "the tests of the crate use more of it")]
mod world;
