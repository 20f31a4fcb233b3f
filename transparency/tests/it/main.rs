//! Tests of the transparency log through its public interface.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fields;
mod framing;
mod honest;
mod lies;
mod notes;
mod oracle;
mod strict;
mod support;
mod vectors;
mod world;
