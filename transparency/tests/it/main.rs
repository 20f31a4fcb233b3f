//! Tests of the transparency log through its public interface.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod derived;
mod fields;
mod framing;
mod histories;
mod lies;
mod measure;
mod notes;
mod oracle;
mod owners;
mod random;
mod strict;
mod support;
mod vectors;
mod world;
