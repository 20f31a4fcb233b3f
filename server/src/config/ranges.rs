//! Checks the ranges of the settings, and what they must be to each other.

use std::{fmt, time::Duration};

use keypool_openapi::MAX_TARGETS;
use keypool_validation::{key_package::KNOWN_CIPHERSUITES, token::Token};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::{AdminToken, Config, DAY, Registration, error::ConfigError};

/// The fewest characters of the admin token, which gives access to every user's audit trail.
const MIN_ADMIN_TOKEN: usize = 32;

/// The most KeyPackages that one statement of a sweep changes: the statement names each, and SQLite allows 32,766
/// values.
const MAX_SWEEP_BATCH: u32 = 10_000;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

impl Config {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.check_connections()?;
        self.check_registration()?;
        self.check_admin_token()?;
        self.check_reservations()?;
        self.check_key_packages()?;
        self.check_limits()?;
        self.check_retention()
    }

    fn check_connections(&self) -> Result<(), ConfigError> {
        let url = &self.database_url;
        url.check().or_else(|rule| require(false, "database_url", url, rule))?;
        let connections = self.database_connections;
        require(connections > 0, "database_connections", connections, "has to be at least 1")?;
        let wait = self.database_wait;
        require(wait <= HOUR, "database_wait", seconds(wait), "has to be at most 1h")?;
        let offset = self.max_clock_offset;
        require(!offset.is_zero(), "max_clock_offset", seconds(offset), "has to be more than 0")?;
        let rule = "has to be at most 1m: reservations that long would be handed out twice";
        require(offset <= MINUTE, "max_clock_offset", seconds(offset), rule)?;
        let cache = self.token_cache;
        require(cache <= MINUTE, "token_cache", seconds(cache), "has to be at most 1m")?;
        let both = self.tls_certificate.is_some() == self.tls_key.is_some();
        require(both, "tls_key", "alone", "goes together with tls_certificate: set both or neither")?;
        let is_filter = EnvFilter::try_new(&self.log).is_ok() && self.log.split(',').all(is_directive);
        let rule =
            "has to be a level (off, error, warn, info, debug, trace) or directives, such as info,keypool_server=debug";
        require(is_filter, "log", &self.log, rule)
    }

    fn check_registration(&self) -> Result<(), ConfigError> {
        if self.registration != Registration::Jwt {
            return Ok(());
        }
        for (key, value) in
            [("jwt_issuer", &self.jwt_issuer), ("jwt_audience", &self.jwt_audience), ("jwt_jwks", &self.jwt_jwks)]
        {
            let set = value.as_ref().is_some_and(|value| !value.is_empty());
            require(set, key, "missing", "has to be set where registration is jwt")?;
        }
        let claim = &self.jwt_user_claim;
        let is_read = !["", "exp", "nbf"].contains(&claim.as_str());
        require(is_read, "jwt_user_claim", claim, "has to name a claim with the user's name, such as sub")
    }

    fn check_admin_token(&self) -> Result<(), ConfigError> {
        let Some(text) = self.admin_token.as_ref().map(AdminToken::expose) else { return Ok(()) };
        require(text.len() >= MIN_ADMIN_TOKEN, "admin_token", "too short", "has to have 32 characters or more")?;
        // A token with characters that a header cannot have could never match.
        let can_be_sent = text == text.trim() && text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
        let rule = "has to be ASCII alone, with no blank or end of line before or behind it";
        require(can_be_sent, "admin_token", "not to be sent in a header", rule)?;
        let is_another = Token::from_header(&format!("Bearer {text}")).is_none();
        require(is_another, "admin_token", "like the token of a device", "has to look otherwise")
    }

    fn check_reservations(&self) -> Result<(), ConfigError> {
        let ttl = self.reservation_ttl;
        require(ttl >= SECOND, "reservation_ttl", seconds(ttl), "has to be at least 1s")?;
        let longest = self.max_reservation_ttl;
        require(longest >= ttl, "max_reservation_ttl", seconds(longest), "has to be at least reservation_ttl")?;
        require(longest <= DAY, "max_reservation_ttl", seconds(longest), "has to be at most 1day")?;
        let window = self.idempotency_window;
        require(window <= DAY * 7, "idempotency_window", seconds(window), "has to be at most 7days")?;
        require(window >= longest, "idempotency_window", seconds(window), "has to be at least max_reservation_ttl")
    }

    fn check_key_packages(&self) -> Result<(), ConfigError> {
        let (remaining, lifetime) = (self.min_remaining, self.max_lifetime);
        require(remaining < lifetime, "min_remaining", seconds(remaining), "has to be less than max_lifetime")?;
        require(lifetime <= DAY * 730, "max_lifetime", seconds(lifetime), "has to be at most 730days")?;
        let tolerance = self.clock_tolerance;
        require(tolerance <= HOUR, "clock_tolerance", seconds(tolerance), "has to be at most 1h")?;
        let suites = &self.ciphersuites;
        let known = !suites.is_empty() && suites.iter().all(|suite| KNOWN_CIPHERSUITES.contains(suite));
        require(known, "ciphersuites", format!("{suites:?}"), "has to list some of 1, 2 and 3")?;
        let (low, target) = (self.low_watermark, self.pool_target);
        require(low < target, "low_watermark", low, "has to be less than pool_target")?;
        require(target <= self.pool_capacity, "pool_target", target, "has to be at most pool_capacity")
    }

    fn check_limits(&self) -> Result<(), ConfigError> {
        let positive = [
            ("max_devices", self.max_devices),
            ("requester_burst", self.requester_burst),
            ("requester_per_minute", self.requester_per_minute),
            ("pair_burst", self.pair_burst),
            ("pair_per_minute", self.pair_per_minute),
            ("max_live_reservations", self.max_live_reservations),
            ("max_live_per_pair", self.max_live_per_pair),
            ("max_waiting_requests", self.max_waiting_requests),
            ("sweep_batch", self.sweep_batch),
            ("queue_capacity", self.queue_capacity),
        ];
        for (key, value) in positive {
            require(value > 0, key, value, "has to be at least 1")?;
        }
        let burst = self.requester_burst;
        let users = u32::try_from(MAX_TARGETS).unwrap_or(u32::MAX);
        require(burst >= users, "requester_burst", burst, "has to be at least 100: one request may name 100 users")
    }

    fn check_retention(&self) -> Result<(), ConfigError> {
        let batch = self.sweep_batch;
        require(batch <= MAX_SWEEP_BATCH, "sweep_batch", batch, "has to be at most 10000")?;
        let interval = self.sweep_interval;
        require(interval >= SECOND, "sweep_interval", seconds(interval), "has to be at least 1s")?;
        let kept = self.audit_retention;
        require(kept >= DAY, "audit_retention", seconds(kept), "has to be at least 1day")?;
        require(kept <= DAY * 3_650, "audit_retention", seconds(kept), "has to be at most 3650days")?;
        let kept = self.message_retention;
        require(kept >= HOUR, "message_retention", seconds(kept), "has to be at least 1h")?;
        require(kept <= DAY * 365, "message_retention", seconds(kept), "has to be at most 365days")
    }
}

/// Whether a directive is a level, or names what it is for. Any other word would be taken for the name of a module, and
/// silence the rest.
fn is_directive(directive: &str) -> bool {
    directive.contains(['=', '[', ':', '_']) || directive.trim().parse::<LevelFilter>().is_ok()
}

fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs())
}

fn require(holds: bool, key: &'static str, value: impl fmt::Display, rule: &str) -> Result<(), ConfigError> {
    if holds {
        Ok(())
    } else {
        Err(ConfigError::OutOfRange { key: key.to_owned(), value: value.to_string(), rule: rule.to_owned() })
    }
}
