//! What only containers show. Run with `KEYPOOL_TEST_TARGET=compose cargo test-all`.

mod faults;
mod image;
mod quickstart;
