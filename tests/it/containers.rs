//! Tests that need containers. Run with `KEYPOOL_TEST_TARGET=compose cargo test-all`.

mod faults;
mod http2;
mod image;
mod quickstart;
mod settings;
