//! The type of causes.

/// An error of another library, kept as the cause.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;
