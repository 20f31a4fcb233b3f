//! Where the configuration comes from, and what it may be.

use std::{collections::HashMap, fmt, time::Duration};

use config::{Environment, File, FileFormat};
use keypool_openapi::MAX_TARGETS;
use keypool_validation::{key_package::KNOWN_CIPHERSUITES, token::Token};
use tracing_subscriber::EnvFilter;

use super::{Config, ConfigFlags, DAY, Registration};

/// Characters of the admin token at least: it opens every user's audit trail.
const MIN_ADMIN_TOKEN: usize = 32;

/// KeyPackages that a sweep changes in one statement at most: each is named in it, and SQLite takes 32,766 values.
const MAX_SWEEP_BATCH: u32 = 10_000;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A source cannot be read, or has a key or value that is not known.
    #[error(transparent)]
    Unreadable(#[from] config::ConfigError),
    /// A value is out of its range.
    #[error("the setting {key} is {value}, but {rule}")]
    OutOfRange {
        /// The setting.
        key: String,
        /// What it is.
        value: String,
        /// What it has to be.
        rule: String,
    },
}

impl Config {
    /// The configuration of this process.
    ///
    /// # Errors
    /// When a source cannot be read, has an unknown key, or a value is out of its range.
    pub fn load(flags: &ConfigFlags) -> Result<Self, ConfigError> {
        let known = Self::variables();
        let mut environment = HashMap::new();
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.into_string().ok().filter(|name| known.contains(name)) else { continue };
            let value = value.into_string().map_err(|value| ConfigError::OutOfRange {
                key: name.clone(),
                value: value.display().to_string(),
                rule: "has to be UTF-8".to_owned(),
            })?;
            environment.insert(name, value);
        }
        Self::load_from(flags, environment)
    }

    /// The configuration by these flags, the file that they name, and these environment variables.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_from(flags: &ConfigFlags, environment: HashMap<String, String>) -> Result<Self, ConfigError> {
        // Only what is a setting: for a service named keypool, Kubernetes sets KEYPOOL_PORT and others of its own.
        let known = Self::variables();
        let is_set = |(name, value): &(String, String)| known.contains(name) && !value.is_empty();
        let mut environment: HashMap<_, _> = environment.into_iter().filter(is_set).collect();
        let mut list = |name: &str| {
            let list = environment.remove(name)?;
            Some(list.split(',').map(|item| item.trim().to_owned()).collect::<Vec<_>>())
        };
        let (ciphersuites, proxies) = (list("KEYPOOL_CIPHERSUITES"), list("KEYPOOL_TRUSTED_PROXIES"));
        let mut builder = config::Config::builder();
        if let Some(file) = &flags.config {
            builder = builder.add_source(File::from(file.as_path()).format(FileFormat::Toml));
        }
        let config: Self = builder
            .add_source(Environment::with_prefix("KEYPOOL").prefix_separator("_").source(Some(environment)))
            .set_override_option("ciphersuites", ciphersuites)?
            .set_override_option("trusted_proxies", proxies)?
            .set_override_option("listen", flags.listen.map(|address| address.to_string()))?
            .set_override_option("database_url", flags.database_url.clone())?
            .set_override_option("log", flags.log.clone())?
            .build()?
            .try_deserialize()?;
        config.check()?;
        Ok(config)
    }

    /// The environment variable of every setting, from the struct itself.
    #[must_use]
    pub fn variables() -> Vec<String> {
        let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(Self::default()) else { return Vec::new() };
        fields.keys().map(|key| format!("KEYPOOL_{}", key.to_uppercase())).collect()
    }

    fn check(&self) -> Result<(), ConfigError> {
        let url = self.database_url.expose();
        require(
            ["sqlite://", "postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)),
            "database_url",
            &self.database_url,
            "has to begin with sqlite:// or postgres://",
        )?;
        require(
            self.database_connections > 0,
            "database_connections",
            self.database_connections,
            "has to be at least 1",
        )?;
        let offset = self.max_clock_offset;
        require(!offset.is_zero(), "max_clock_offset", humantime(offset), "has to be more than 0")?;
        let rule = "has to be at most 1m: reservations that long would be handed out twice";
        require(offset <= Duration::from_mins(1), "max_clock_offset", humantime(offset), rule)?;
        let ttl = self.reservation_ttl;
        require(ttl >= Duration::from_secs(1), "reservation_ttl", humantime(ttl), "has to be at least 1s")?;
        let longest = self.max_reservation_ttl;
        require(longest >= ttl, "max_reservation_ttl", humantime(longest), "has to be at least reservation_ttl")?;
        require(longest <= DAY, "max_reservation_ttl", humantime(longest), "has to be at most 1day")?;
        let (remaining, lifetime) = (self.min_remaining, self.max_lifetime);
        require(remaining < lifetime, "min_remaining", humantime(remaining), "has to be less than max_lifetime")?;
        require(lifetime <= DAY * 365, "max_lifetime", humantime(lifetime), "has to be at most 365days")?;
        let suites = &self.ciphersuites;
        let known = !suites.is_empty() && suites.iter().all(|suite| KNOWN_CIPHERSUITES.contains(suite));
        require(known, "ciphersuites", format!("{suites:?}"), "has to list some of 1, 2 and 3")?;
        self.check_registration()?;
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
        require(burst >= users, "requester_burst", burst, "has to be at least 100: one request may name 100 users")?;
        let batch = self.sweep_batch;
        require(batch <= MAX_SWEEP_BATCH, "sweep_batch", batch, "has to be at most 10000")?;
        let interval = self.sweep_interval;
        require(interval >= Duration::from_secs(1), "sweep_interval", humantime(interval), "has to be at least 1s")?;
        let window = self.idempotency_window;
        require(window <= DAY * 7, "idempotency_window", humantime(window), "has to be at most 7days")?;
        require(window >= longest, "idempotency_window", humantime(window), "has to be at least max_reservation_ttl")?;
        let kept = self.audit_retention;
        require(kept >= DAY, "audit_retention", humantime(kept), "has to be at least 1day")?;
        require(kept <= DAY * 3_650, "audit_retention", humantime(kept), "has to be at most 3650days")?;
        let kept = self.message_retention;
        require(kept >= Duration::from_hours(1), "message_retention", humantime(kept), "has to be at least 1h")?;
        require(kept <= DAY * 365, "message_retention", humantime(kept), "has to be at most 365days")?;
        let cache = self.token_cache;
        require(cache <= Duration::from_mins(1), "token_cache", humantime(cache), "has to be at most 1m")?;
        let (low, target) = (self.low_watermark, self.pool_target);
        require(low < target, "low_watermark", low, "has to be less than pool_target")?;
        require(target <= self.pool_capacity, "pool_target", target, "has to be at most pool_capacity")?;
        require(EnvFilter::try_new(&self.log).is_ok(), "log", &self.log, "has to be tracing directives, such as `info`")
    }

    fn check_registration(&self) -> Result<(), ConfigError> {
        if self.registration == Registration::Jwt {
            for (key, value) in
                [("jwt_issuer", &self.jwt_issuer), ("jwt_audience", &self.jwt_audience), ("jwt_jwks", &self.jwt_jwks)]
            {
                let set = value.as_ref().is_some_and(|value| !value.is_empty());
                require(set, key, "missing", "has to be set where registration is jwt")?;
            }
        }
        let both = self.tls_certificate.is_some() == self.tls_key.is_some();
        require(both, "tls_key", "alone", "goes together with tls_certificate: set both or neither")?;
        if let Some(token) = &self.admin_token {
            require(
                token.expose().len() >= MIN_ADMIN_TOKEN,
                "admin_token",
                "too short",
                "has to have 32 characters or more",
            )?;
            // What a header cannot bear would never be found equal.
            let text = token.expose();
            let can_be_sent = text == text.trim() && text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
            let rule = "has to be ASCII alone, with no blank or end of line before or behind it";
            require(can_be_sent, "admin_token", "not to be sent in a header", rule)?;
            let is_another = Token::from_header(&format!("Bearer {text}")).is_none();
            require(is_another, "admin_token", "like the token of a device", "has to look otherwise")?;
        }
        Ok(())
    }
}

fn humantime(duration: Duration) -> String {
    format!("{}s", duration.as_secs())
}

fn require(holds: bool, key: &'static str, value: impl fmt::Display, rule: &str) -> Result<(), ConfigError> {
    if holds {
        Ok(())
    } else {
        Err(ConfigError::OutOfRange { key: key.to_owned(), value: value.to_string(), rule: rule.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(flags: &ConfigFlags, toml: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), toml).unwrap();
        let flags = ConfigFlags { config: Some(file.path().to_owned()), ..flags.clone() };
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Config::load_from(&flags, environment)
    }

    #[test]
    fn flags_go_over_variables_over_the_file_over_defaults() {
        let toml = "listen = '127.0.0.1:1'\nlog = 'warn'\npool_capacity = 500";
        let variables = [("KEYPOOL_LISTEN", "127.0.0.1:2"), ("KEYPOOL_LOG", "debug"), ("KEYPOOL_CIPHERSUITES", "1,3")];
        let flags = ConfigFlags { listen: Some("127.0.0.1:3".parse().unwrap()), ..ConfigFlags::default() };
        let config = load(&flags, toml, &variables).unwrap();
        assert_eq!(config.listen.port(), 3);
        assert_eq!(config.log, "debug");
        assert_eq!(config.pool_capacity, 500);
        assert_eq!(config.ciphersuites, [1, 3]);
        assert_eq!(config.reservation_ttl, Duration::from_mins(1));
    }

    #[test]
    fn an_unknown_key_is_named_and_refused_and_a_foreign_variable_is_not() {
        let error = load(&ConfigFlags::default(), "listne = '127.0.0.1:1'", &[]).unwrap_err().to_string();
        assert!(error.contains("listne"), "{error}");
        let kubernetes = [("KEYPOOL_PORT", "tcp://10.0.0.1:80"), ("KEYPOOL_SERVICE_HOST", "10.0.0.1")];
        load(&ConfigFlags::default(), "", &kubernetes).unwrap();
    }

    #[test]
    fn every_setting_is_kept_in_its_range() {
        for (toml, key) in [
            ("database_url = 'mysql://x'", "database_url"),
            ("database_connections = 0", "database_connections"),
            ("max_clock_offset = '0s'", "max_clock_offset"),
            ("max_clock_offset = '61s'", "max_clock_offset"),
            ("reservation_ttl = '0s'", "reservation_ttl"),
            ("max_reservation_ttl = '59s'", "max_reservation_ttl"),
            ("max_reservation_ttl = '2days'", "max_reservation_ttl"),
            ("min_remaining = '90days'", "min_remaining"),
            ("max_lifetime = '366days'", "max_lifetime"),
            ("ciphersuites = []", "ciphersuites"),
            ("ciphersuites = [1, 9]", "ciphersuites"),
            ("low_watermark = 32", "low_watermark"),
            ("pool_target = 1001", "pool_target"),
            ("log = 'a=b=c'", "log"),
            ("sweep_batch = 10001", "sweep_batch"),
            ("admin_token = 'b3f1c0ffee5eed0ddba11cab1efab1e'", "admin_token"),
            ("admin_token = \"b3f1c0ffee5eed0ddba11cab1efab1edd\\n\"", "admin_token"),
            ("admin_token = 'b3f1c0ffee5eed0ddba11cab1efab1eé'", "admin_token"),
            ("admin_token = 'keypool_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'", "admin_token"),
        ] {
            let error = load(&ConfigFlags::default(), toml, &[]).unwrap_err();
            assert!(matches!(&error, ConfigError::OutOfRange { key: named, .. } if named == key), "{toml}: {error}");
        }
    }

    #[test]
    fn ciphersuites_are_a_list_of_any_length() {
        for (list, suites) in [("2", vec![2]), ("1, 3", vec![1, 3]), ("1,2,3", vec![1, 2, 3])] {
            let config = load(&ConfigFlags::default(), "ciphersuites = [1]", &[("KEYPOOL_CIPHERSUITES", list)]);
            assert_eq!(config.unwrap().ciphersuites, suites);
        }
        assert!(load(&ConfigFlags::default(), "", &[("KEYPOOL_CIPHERSUITES", "one")]).is_err());
    }

    #[test]
    fn proxies_are_addresses_and_networks() {
        let variables = [("KEYPOOL_TRUSTED_PROXIES", "10.0.0.0/8, 192.0.2.1,fd00::/8")];
        let config = load(&ConfigFlags::default(), "", &variables).unwrap();
        assert_eq!(config.trusted_proxies.to_string(), "10.0.0.0/8,192.0.2.1/32,fd00::/8");
        let error = load(&ConfigFlags::default(), "trusted_proxies = ['10.0.0.0/8', 'proxy']", &[]).unwrap_err();
        assert!(error.to_string().contains("names proxy"), "{error}");
    }

    #[test]
    fn an_empty_variable_is_one_that_is_not_set() {
        let variables: Vec<_> = Config::variables().into_iter().map(|name| (name, "")).collect();
        let variables: Vec<_> = variables.iter().map(|(name, empty)| (name.as_str(), *empty)).collect();
        let config = load(&ConfigFlags::default(), "pool_capacity = 500", &variables).unwrap();
        assert_eq!((config.pool_capacity, &config.ciphersuites), (500, &Config::default().ciphersuites));
    }
}
