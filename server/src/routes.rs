//! What the service answers: one file a resource.

pub mod devices;
pub mod groups;
pub mod health;
pub mod keypackages;
pub mod messages;
pub mod metrics;
