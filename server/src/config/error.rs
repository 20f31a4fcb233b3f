//! Why a configuration is refused.

/// The reason why the configuration cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A source cannot be read, or has an unknown key or value.
    #[error(transparent)]
    Unreadable(#[from] config::ConfigError),
    /// A value is out of its range.
    #[error("the setting {key} is {value}, but {rule}")]
    OutOfRange {
        /// The setting's name.
        key: String,
        /// The value that was given.
        value: String,
        /// The rule that the value breaks.
        rule: String,
    },
}
