//! The configuration: flags over `KEYPOOL_*` over a TOML file over defaults.

mod duration;
mod error;
mod load;
mod origins;
mod proxies;
mod ranges;
mod secret;
mod values;
mod variables;
mod words;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use keypool_validation::key_package::{CredentialBinding, KNOWN_CIPHERSUITES};
use serde::{Deserialize, Serialize};

pub use error::ConfigError;
pub use origins::CorsOrigins;
pub use proxies::TrustedProxies;
pub use secret::{AdminToken, DatabaseUrl};

const DAY: Duration = Duration::from_hours(24);

/// What an operator can set.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen.
    #[serde(deserialize_with = "values::listen")]
    pub listen: SocketAddr,
    /// The database: `sqlite://PATH` or `postgres://…`.
    pub database_url: DatabaseUrl,
    /// Connections to the database.
    pub database_connections: u32,
    /// How long a program waits for a PostgreSQL that takes no connections yet, when it starts.
    #[serde(with = "duration")]
    pub database_wait: Duration,
    /// What a server does that finds its database restored from a backup, or promoted.
    #[serde(deserialize_with = "values::choice")]
    pub on_restore: OnRestore,
    /// How far the server's clock may be off the database's. Where it is further off, the server is not ready, and reserves and
    /// sweeps nothing.
    #[serde(with = "duration")]
    pub max_clock_offset: Duration,
    /// A PEM file with the certificate chain: with `tls_key`, the server speaks HTTPS alone.
    pub tls_certificate: Option<PathBuf>,
    /// A PEM file with the private key of `tls_certificate`.
    pub tls_key: Option<PathBuf>,
    /// How long a server that is told to stop still serves while `/readyz` answers 503, so that what balances the load
    /// sends it nothing more.
    #[serde(with = "duration")]
    pub shutdown_delay: Duration,
    /// What it takes to register the first device of a user.
    #[serde(deserialize_with = "values::choice")]
    pub registration: Registration,
    /// The issuer (`iss`) of the tokens that register in the mode `jwt`.
    pub jwt_issuer: Option<String>,
    /// The audience (`aud`) that these tokens have to name.
    pub jwt_audience: Option<String>,
    /// The claim of these tokens that names the user.
    pub jwt_user_claim: String,
    /// The issuer's public keys, a JWK Set (RFC 7517): a file's path, or an http(s) URL.
    pub jwt_jwks: Option<String>,
    /// Devices that a user has at most.
    pub max_devices: u32,
    /// The operator's bearer token, for any user's devices and audit trail, the pools that are low, and the removal of
    /// devices.
    pub admin_token: Option<AdminToken>,
    /// How long a server goes on trusting a bearer token that it has just looked up: so long a removed device may still
    /// be served by another server of the same database.
    #[serde(with = "duration")]
    pub token_cache: Duration,
    /// How long a reservation holds where the request does not say.
    #[serde(with = "duration")]
    pub reservation_ttl: Duration,
    /// The longest that a request may ask for.
    #[serde(with = "duration")]
    pub max_reservation_ttl: Duration,
    /// What becomes of a KeyPackage whose reservation lapses or is released.
    #[serde(deserialize_with = "values::choice")]
    pub on_lapse: OnLapse,
    /// How long the answer to a `reserve` with an `Idempotency-Key` is kept at least, and so long may a registration
    /// with one be repeated.
    #[serde(with = "duration")]
    pub idempotency_window: Duration,
    /// KeyPackages that expire sooner than this are not handed out.
    #[serde(with = "duration")]
    pub min_remaining: Duration,
    /// The longest lifetime of an uploaded KeyPackage, from `not_before` to `not_after`.
    #[serde(with = "duration")]
    pub max_lifetime: Duration,
    /// How far the `not_before` of an uploaded KeyPackage may be ahead of the server's clock.
    #[serde(with = "duration")]
    pub clock_tolerance: Duration,
    /// The ciphersuites that are taken, by number.
    pub ciphersuites: Vec<u16>,
    /// Whether a credential has to be the uploader's.
    #[serde(deserialize_with = "values::choice")]
    pub credential_binding: CredentialBinding,
    /// KeyPackages that a pool holds at most, per device and ciphersuite.
    pub pool_capacity: u32,
    /// Fresh KeyPackages of a full pool: what the status recommends to fill up to.
    pub pool_target: u32,
    /// Fresh KeyPackages below which a pool is `low`.
    pub low_watermark: u32,
    /// Whether requests are limited at all.
    #[serde(deserialize_with = "values::choice")]
    pub limits: Limits,
    /// The proxies that clients come through: addresses and networks. Strangers are then limited by their address, which the
    /// proxy names in `X-Forwarded-For`.
    pub trusted_proxies: TrustedProxies,
    /// The origins whose web pages may call the server.
    pub cors_origins: CorsOrigins,
    /// What a user may ask for at once. A request counts as one, a `reserve` as one for each user that it names.
    pub requester_burst: u32,
    /// What a user may ask for in a minute, when the burst is used up.
    pub requester_per_minute: u32,
    /// How often a user may reserve another user's KeyPackages at once.
    pub pair_burst: u32,
    /// How often a user may reserve another user's KeyPackages in a minute, when the burst is used up.
    pub pair_per_minute: u32,
    /// Reservations that a device holds at the same time at most, counted over all servers of the database.
    pub max_live_reservations: u32,
    /// KeyPackages of one device that another user holds at the same time at most, counted over all servers of the database.
    pub max_live_per_pair: u32,
    /// Requests that wait for the database at the same time at most; further ones are answered `unavailable`.
    pub max_waiting_requests: u32,
    /// How often the server tidies up.
    #[serde(with = "duration")]
    pub sweep_interval: Duration,
    /// Rows that one step of tidying up changes at most.
    pub sweep_batch: u32,
    /// How long the audit trail is kept.
    #[serde(with = "duration")]
    pub audit_retention: Duration,
    /// How long a Commit, a Welcome or a message is kept for a device that does not fetch it.
    #[serde(with = "duration")]
    pub message_retention: Duration,
    /// Commits, Welcomes and messages that wait for a device at most.
    pub queue_capacity: u32,
    /// The file with the key of the transparency log, made at the first start. An SQLite database has one beside it; without one,
    /// a PostgreSQL database has no log.
    pub log_key: Option<PathBuf>,
    /// Decides which callers may read the transparency log.
    #[serde(deserialize_with = "values::choice")]
    pub log_access: LogAccess,
    /// Memory that the server may use, in MiB: what it does at the same time is a share of it. Without it, what the container or
    /// the machine has.
    pub memory: Option<u32>,
    /// What to log: `tracing` directives, such as `info` or `keypool_server=debug`.
    pub log: String,
    /// How to log.
    #[serde(deserialize_with = "values::choice")]
    pub log_format: LogFormat,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            database_url: DatabaseUrl("sqlite://keypool.db".to_owned()),
            database_connections: 16,
            database_wait: Duration::from_mins(1),
            on_restore: OnRestore::Fence,
            max_clock_offset: Duration::from_secs(2),
            tls_certificate: None,
            tls_key: None,
            shutdown_delay: Duration::from_secs(2),
            registration: Registration::Open,
            jwt_issuer: None,
            jwt_audience: None,
            jwt_user_claim: "sub".to_owned(),
            jwt_jwks: None,
            max_devices: 100,
            admin_token: None,
            token_cache: Duration::from_secs(5),
            reservation_ttl: Duration::from_mins(1),
            max_reservation_ttl: Duration::from_mins(10),
            on_lapse: OnLapse::Release,
            idempotency_window: Duration::from_hours(1),
            min_remaining: Duration::from_hours(1),
            max_lifetime: DAY * 90,
            clock_tolerance: Duration::from_mins(1),
            ciphersuites: KNOWN_CIPHERSUITES.to_vec(),
            credential_binding: CredentialBinding::Strict,
            pool_capacity: 1_000,
            pool_target: 32,
            low_watermark: 8,
            limits: Limits::On,
            trusted_proxies: TrustedProxies::default(),
            cors_origins: CorsOrigins::default(),
            requester_burst: 2_000,
            requester_per_minute: 1_200,
            pair_burst: 30,
            pair_per_minute: 30,
            max_live_reservations: 2_000,
            max_live_per_pair: 8,
            max_waiting_requests: 512,
            sweep_interval: Duration::from_secs(30),
            sweep_batch: 500,
            audit_retention: DAY * 90,
            message_retention: DAY * 30,
            queue_capacity: 10_000,
            log_key: None,
            log_access: LogAccess::Public,
            memory: None,
            log: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }
}

/// What it takes to register the first device of a user. A further device takes a token of that user in every mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Registration {
    /// Nothing: first come, first served.
    Open,
    /// An enrolment token, which `keypool-server enrol --user NAME` prints.
    Token,
    /// A token of the operator's identity provider, which names the user.
    Jwt,
}

/// What becomes of a KeyPackage whose reservation lapses or is released: its bytes were seen by somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnLapse {
    /// It returns to the pool, behind those that were never handed out.
    Release,
    /// It is never handed out again (RFC 9420, section 16.8).
    Retire,
}

/// What becomes of the pools when the database is not the one that was served before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnRestore {
    /// All that may have been handed out since the backup is withdrawn, and every device fills its pool anew.
    Fence,
    /// Nothing: the operator knows that no transaction was lost.
    Trust,
}

impl Config {
    /// The seconds that a KeyPackage must still be valid to be handed out. At least one: a KeyPackage that expires in the
    /// current second has expired.
    #[must_use]
    pub fn min_remaining_seconds(&self) -> i64 {
        i64::try_from(self.min_remaining.as_secs()).unwrap_or(i64::MAX).max(1)
    }
}

/// Whether requests are limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limits {
    /// As the settings say.
    On,
    /// Not at all, for load tests.
    Off,
}

/// The readers of the transparency log's checkpoints and tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogAccess {
    /// Everybody.
    Public,
    /// Registered devices and the operator.
    Registered,
    /// Nobody: then nobody can audit it. Devices still get receipts and proofs of their own.
    Off,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// Settings that the command line may carry.
#[expect(clippy::doc_markdown, reason = "clap prints these lines as they stand")]
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigFlags {
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE", env = "KEYPOOL_CONFIG", global = true)]
    pub config: Option<PathBuf>,
    /// Listen here, over KEYPOOL_LISTEN [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS", value_parser = values::address, global = true)]
    pub listen: Option<SocketAddr>,
    /// sqlite://PATH or postgres://…, over KEYPOOL_DATABASE_URL [default: sqlite://keypool.db]
    #[arg(long, value_name = "URL", global = true)]
    pub database_url: Option<String>,
    /// What to log, over KEYPOOL_LOG [default: info]
    #[arg(long, value_name = "DIRECTIVES", global = true)]
    pub log: Option<String>,
}
