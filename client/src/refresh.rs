//! Brings the pool and the server to agree, and keeps the pool full: the layer over `pool` and `api`.

mod catch_up;
#[cfg(feature = "sqlite")]
mod device;
mod report;
mod rotation;
mod steps;
mod upload;

pub use catch_up::{CatchUp, CatchingUp};
pub use report::{RefreshReport, Rejection, Warning};
pub use steps::Refresh;
