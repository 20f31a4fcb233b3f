//! What the server says of itself at `/`.

use std::time::Duration;

use keypool_openapi::{
    Documentation, MAX_KEY_PACKAGE_SIZE, MAX_MESSAGE_SIZE, MAX_RECIPIENTS, MAX_TARGETS, MAX_UPLOAD_BATCH, ServerInfo,
    ServerLimits,
};
use serde::Serialize;

use crate::config::Config;

/// What a client has to know of a server with this configuration.
pub(super) fn info(config: &Config) -> ServerInfo {
    ServerInfo {
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ciphersuites: config.ciphersuites.clone(),
        registration: word(config.registration),
        credential_binding: word(config.credential_binding),
        limits: limits(config),
        documentation: Documentation { openapi: "openapi.json".to_owned(), swagger_ui: "swagger-ui/".to_owned() },
    }
}

fn limits(config: &Config) -> ServerLimits {
    ServerLimits {
        max_lifetime: seconds(config.max_lifetime),
        min_remaining: seconds(config.min_remaining),
        clock_tolerance: seconds(config.clock_tolerance),
        upload_batch: MAX_UPLOAD_BATCH,
        key_package_size: MAX_KEY_PACKAGE_SIZE,
        pool_capacity: config.pool_capacity,
        pool_target: config.pool_target,
        low_watermark: config.low_watermark,
        devices: config.max_devices,
        targets: MAX_TARGETS,
        reservation_ttl: seconds(config.reservation_ttl),
        max_reservation_ttl: seconds(config.max_reservation_ttl),
        recipients: MAX_RECIPIENTS,
        message_size: MAX_MESSAGE_SIZE,
        message_retention: seconds(config.message_retention),
    }
}

fn seconds(duration: Duration) -> u64 {
    duration.as_secs()
}

/// A setting as the configuration writes it.
fn word(setting: impl Serialize) -> String {
    let value = serde_json::to_value(setting).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}
