//! Reads durations with their units, and writes them.

use std::time::Duration;

pub(super) use humantime_serde::serialize;
use serde::{Deserialize, Deserializer, de::Error};

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|_| {
        D::Error::custom(format_args!(
            "{text:?} is not a duration: give a number with its unit, such as 60s, 10m, 2h or 7days"
        ))
    })
}
