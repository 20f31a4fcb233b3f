//! Gives every program of the workspace the same features of shared dependencies, so that they are built once.
