//! The configuration: flags over `KEYPOOL_*` over a TOML file over defaults.

use std::{
    collections::HashMap,
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use config::{Environment, File, FileFormat};
use serde::{Deserialize, Serialize, Serializer};
use tracing_subscriber::EnvFilter;
use url::Url;

const DAY: Duration = Duration::from_hours(24);

/// The ciphersuites that the server can check signatures of (RFC 9420, section 17.1).
const KNOWN_CIPHERSUITES: [u16; 3] = [1, 2, 3];

/// What an operator can set.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The database: `sqlite://PATH` or `postgres://…`.
    pub database_url: DatabaseUrl,
    /// Connections to the database.
    pub database_connections: u32,
    /// How long a reservation holds where the request does not say.
    #[serde(with = "humantime_serde")]
    pub reservation_ttl: Duration,
    /// The longest that a request may ask for.
    #[serde(with = "humantime_serde")]
    pub max_reservation_ttl: Duration,
    /// KeyPackages that expire sooner than this are not handed out.
    #[serde(with = "humantime_serde")]
    pub min_remaining: Duration,
    /// The longest lifetime of an uploaded KeyPackage, from `not_before` to `not_after`.
    #[serde(with = "humantime_serde")]
    pub max_lifetime: Duration,
    /// The ciphersuites that are taken, by number.
    pub ciphersuites: Vec<u16>,
    /// Whether a credential has to be the uploader's.
    pub credential_binding: CredentialBinding,
    /// KeyPackages that a pool holds at most, per device and ciphersuite.
    pub pool_capacity: u32,
    /// Fresh KeyPackages of a full pool: what the status recommends to fill up to.
    pub pool_target: u32,
    /// Fresh KeyPackages below which a pool is `low`.
    pub low_watermark: u32,
    /// What to log: `tracing` directives, such as `info` or `keypool_server=debug`.
    pub log: String,
    /// How to log.
    pub log_format: LogFormat,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            database_url: DatabaseUrl("sqlite://keypool.db".to_owned()),
            database_connections: 16,
            reservation_ttl: Duration::from_mins(1),
            max_reservation_ttl: Duration::from_mins(10),
            min_remaining: Duration::from_hours(1),
            max_lifetime: DAY * 90,
            ciphersuites: KNOWN_CIPHERSUITES.to_vec(),
            credential_binding: CredentialBinding::Strict,
            pool_capacity: 1_000,
            pool_target: 32,
            low_watermark: 8,
            log: "info".to_owned(),
            log_format: LogFormat::Text,
        }
    }
}

/// Whether a KeyPackage's credential has to name its uploader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CredentialBinding {
    /// The credential is basic, and its identity is `user/device` of the uploader.
    Strict,
    /// Any credential: the application checks it.
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

/// A database's address. Its password is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The address with the password.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for DatabaseUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl fmt::Display for DatabaseUrl {
    /// The address without what could be a secret: password and parameters, or all of it where it is no URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.starts_with("sqlite://") {
            return f.write_str(&self.0);
        }
        match Url::parse(&self.0) {
            Ok(mut url) if url.has_host() => {
                url.set_query(None);
                if url.password().is_some() && url.set_password(Some("***")).is_err() {
                    return f.write_str("***");
                }
                write!(f, "{url}")
            }
            _ => f.write_str("***"),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Settings that the command line may carry.
#[expect(clippy::doc_markdown, reason = "clap prints these lines as they stand")]
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigFlags {
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE", env = "KEYPOOL_CONFIG", global = true)]
    pub config: Option<PathBuf>,
    /// Listen here, over KEYPOOL_LISTEN [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS", global = true)]
    pub listen: Option<SocketAddr>,
    /// sqlite://PATH or postgres://…, over KEYPOOL_DATABASE_URL [default: sqlite://keypool.db]
    #[arg(long, value_name = "URL", global = true)]
    pub database_url: Option<String>,
    /// What to log, over KEYPOOL_LOG [default: info]
    #[arg(long, value_name = "DIRECTIVES", global = true)]
    pub log: Option<String>,
}

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
        let mut environment: HashMap<_, _> = environment.into_iter().filter(|(name, _)| known.contains(name)).collect();
        let ciphersuites = environment.remove("KEYPOOL_CIPHERSUITES");
        let ciphersuites =
            ciphersuites.map(|list| list.split(',').map(|item| item.trim().to_owned()).collect::<Vec<_>>());
        let mut builder = config::Config::builder();
        if let Some(file) = &flags.config {
            builder = builder.add_source(File::from(file.as_path()).format(FileFormat::Toml));
        }
        let config: Self = builder
            .add_source(
                Environment::with_prefix("KEYPOOL").prefix_separator("_").source(Some(environment)).try_parsing(true),
            )
            .set_override_option("ciphersuites", ciphersuites)?
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
        let (low, target) = (self.low_watermark, self.pool_target);
        require(low < target, "low_watermark", low, "has to be less than pool_target")?;
        require(target <= self.pool_capacity, "pool_target", target, "has to be at most pool_capacity")?;
        require(EnvFilter::try_new(&self.log).is_ok(), "log", &self.log, "has to be tracing directives, such as `info`")
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
    fn the_password_is_not_shown() {
        for url in [
            "postgres://me:hunter2@db/keypool",
            "postgres://me:hun@ter2@db/keypool?password=hunter2",
            "postgres://me:hun?ter2@db/keypool",
            "postgres:/me:hunter2@db/keypool",
            "host=db user=me password=hunter2",
        ] {
            let url = DatabaseUrl(url.to_owned());
            let shown = format!("{url:?} {}", serde_json::to_string(&url).unwrap());
            assert!(!shown.contains("ter2") && !shown.contains("hun"), "{shown}");
        }
        assert_eq!(DatabaseUrl("postgres://me:x@db/keypool".to_owned()).to_string(), "postgres://me:***@db/keypool");
    }
}
