//! Keeps the KeyPackage pool on the server up to date: refresh, upload, and rotation of the signature key.

mod report;
mod rotation;
mod steps;
mod upload;

pub use report::{RefreshReport, Rejection, Warning};
