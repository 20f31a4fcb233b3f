//! Loads the configuration from its sources.

use std::collections::HashMap;

use config::{Environment, File, FileFormat};

use super::{
    Config, ConfigFlags,
    error::ConfigError,
    variables::{is_secret, is_setting, with_secrets},
};

impl Config {
    /// Loads the configuration of this process.
    ///
    /// # Errors
    /// When a source cannot be read, has an unknown key, or a value is out of its range.
    pub fn load(flags: &ConfigFlags) -> Result<Self, ConfigError> {
        let mut environment = HashMap::new();
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.into_string().ok().filter(|name| is_setting(name)) else { continue };
            let value = value.into_string().map_err(|value| ConfigError::OutOfRange {
                key: name.clone(),
                value: if is_secret(&name) { "***".to_owned() } else { value.display().to_string() },
                rule: "has to be UTF-8".to_owned(),
            })?;
            environment.insert(name, value);
        }
        Self::load_from(flags, environment)
    }

    /// Loads the configuration from these flags, the file that they name, and these environment variables.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_from(flags: &ConfigFlags, environment: HashMap<String, String>) -> Result<Self, ConfigError> {
        let environment = with_secrets(environment)?;
        let known = Self::variables();
        let is_set = |(name, value): &(String, String)| known.contains(name) && !value.is_empty();
        let mut environment: HashMap<_, _> = environment.into_iter().filter(is_set).collect();
        let mut list = |name: &str| {
            let list = environment.remove(name)?;
            Some(list.split(',').map(|item| item.trim().to_owned()).collect::<Vec<_>>())
        };
        let (ciphersuites, proxies) = (list("KEYPOOL_CIPHERSUITES"), list("KEYPOOL_TRUSTED_PROXIES"));
        let origins = list("KEYPOOL_CORS_ORIGINS");
        let mut builder = config::Config::builder();
        if let Some(file) = &flags.config {
            builder = builder.add_source(File::from(file.as_path()).format(FileFormat::Toml));
        }
        let config: Self = builder
            .add_source(Environment::with_prefix("KEYPOOL").prefix_separator("_").source(Some(environment)))
            .set_override_option("ciphersuites", ciphersuites)?
            .set_override_option("trusted_proxies", proxies)?
            .set_override_option("cors_origins", origins)?
            .set_override_option("listen", flags.listen.map(|address| address.to_string()))?
            .set_override_option("database_url", flags.database_url.clone())?
            .set_override_option("log", flags.log.clone())?
            .build()?
            .try_deserialize()?;
        config.check()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
            ("database_wait = '61m'", "database_wait"),
            ("max_clock_offset = '0s'", "max_clock_offset"),
            ("max_clock_offset = '61s'", "max_clock_offset"),
            ("reservation_ttl = '0s'", "reservation_ttl"),
            ("max_reservation_ttl = '59s'", "max_reservation_ttl"),
            ("max_reservation_ttl = '2days'", "max_reservation_ttl"),
            ("min_remaining = '90days'", "min_remaining"),
            ("max_lifetime = '731days'", "max_lifetime"),
            ("clock_tolerance = '61m'", "clock_tolerance"),
            ("ciphersuites = []", "ciphersuites"),
            ("ciphersuites = [1, 9]", "ciphersuites"),
            ("low_watermark = 32", "low_watermark"),
            ("pool_target = 1001", "pool_target"),
            ("log = 'a=b=c'", "log"),
            ("log = 'verbose'", "log"),
            ("log = 'info,quiet'", "log"),
            ("database_url = 'sqlite://:memory:'", "database_url"),
            ("database_url = 'sqlite://'", "database_url"),
            ("database_url = 'sqlite://q.db?mode=rwc'", "database_url"),
            ("database_url = 'postgres://u:s3cr@et@h/db'", "database_url"),
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
    fn an_error_names_the_value_what_is_allowed_and_an_example() {
        for (toml, told) in [
            ("registration = 'Token'", r#""Token" is not one of open, token, jwt"#),
            ("credential_binding = 'on'", r#""on" is not one of strict, off"#),
            ("limits = 'no'", r#""no" is not one of on, off"#),
            ("reservation_ttl = '60'", r#""60" is not a duration: give a number with its unit, such as 60s"#),
            ("reservation_ttl = 60", r#""60" is not a duration"#),
            ("listen = 'nowhere'", r#""nowhere" is not an address"#),
            ("log = 'verbose'", "the setting log is verbose, but has to be a level (off, error"),
        ] {
            let error = load(&ConfigFlags::default(), toml, &[]).unwrap_err().to_string();
            assert!(error.contains(told) && error.contains(toml.split(' ').next().unwrap()), "{toml}: {error}");
        }
        let secret = "database_url = 'postgres://u:s3cr@et@h/db'";
        let error = load(&ConfigFlags::default(), secret, &[]).unwrap_err().to_string();
        assert!(!error.contains("s3cr") && !error.contains("et@") && error.contains("%40"), "{error}");
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
