//! Checks proofs, hand-outs, evidence and whole logs of Keypool servers.

fn main() {}
