//! The environment variables of the settings: which there are, secrets in files, and names that are no setting.

use std::{collections::HashMap, fs};

use super::{Config, error::ConfigError};

/// The prefix of all variables.
const PREFIX: &str = "KEYPOOL_";

/// The variable that names the configuration file.
const FILE: &str = "KEYPOOL_CONFIG";

/// The settings that are secret, or have a secret in them. A variable with `_FILE` at its end names a file that has the
/// value, as container platforms mount secrets.
const SECRETS: [&str; 2] = ["KEYPOOL_ADMIN_TOKEN", "KEYPOOL_DATABASE_URL"];

impl Config {
    /// Returns the environment variables of all settings, derived from the struct itself.
    #[must_use]
    pub fn variables() -> Vec<String> {
        let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(Self::default()) else { return Vec::new() };
        fields.keys().map(|key| format!("{PREFIX}{}", key.to_uppercase())).collect()
    }

    /// Returns the names of this process's variables that begin like those of settings and are none, sorted. Leaves out
    /// those that Kubernetes sets for a service of this name.
    #[must_use]
    pub fn unknown_variables() -> Vec<String> {
        let mut unknown: Vec<_> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
            .filter(|(name, value)| is_unknown(name, value))
            .map(|(name, _)| name)
            .collect();
        unknown.sort();
        unknown
    }
}

/// The variable that names the file of a secret.
fn file_of(secret: &str) -> String {
    format!("{secret}_FILE")
}

/// Whether a variable's value must not be shown.
pub(super) fn is_secret(name: &str) -> bool {
    SECRETS.contains(&name)
}

/// Whether a variable is a setting's, or names the file of a secret.
pub(super) fn is_setting(name: &str) -> bool {
    name.starts_with(PREFIX)
        && (SECRETS.iter().any(|secret| file_of(secret) == name)
            || Config::variables().iter().any(|known| known == name))
}

fn is_unknown(name: &str, value: &str) -> bool {
    name.starts_with(PREFIX) && name != FILE && !is_setting(name) && !is_of_kubernetes(name, value)
}

/// Whether Kubernetes sets this variable, for a service whose name begins with `keypool`.
fn is_of_kubernetes(name: &str, value: &str) -> bool {
    let is_url = value.starts_with("tcp://") || value.starts_with("udp://");
    let of_a_port =
        name.split_once("_PORT_").is_some_and(|(_, port)| port.starts_with(|first: char| first.is_ascii_digit()));
    name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || of_a_port || name.ends_with("_PORT") && is_url
}

/// Puts the secrets in files that variables name into the environment. A line end at the end of a file is not part of the
/// secret.
pub(super) fn with_secrets(mut environment: HashMap<String, String>) -> Result<HashMap<String, String>, ConfigError> {
    for secret in SECRETS {
        let file = file_of(secret);
        let Some(path) = environment.remove(&file).filter(|path| !path.is_empty()) else { continue };
        let refused = |rule: String| ConfigError::OutOfRange { key: file.clone(), value: path.clone(), rule };
        if environment.get(secret).is_some_and(|value| !value.is_empty()) {
            return Err(refused(format!("{secret} is set, too: set one of them")));
        }
        let text = fs::read_to_string(&path).map_err(|error| refused(format!("the file cannot be read: {error}")))?;
        let text = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
        if text.is_empty() {
            return Err(refused("the file is empty".to_owned()));
        }
        environment.insert(secret.to_owned(), text.to_owned());
    }
    Ok(environment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_setting_is_seen_and_what_kubernetes_sets_is_not() {
        for (name, value) in
            [("KEYPOOL_REGISTRATOIN", "token"), ("KEYPOOL_TLS_KEY_FILE", "x"), ("KEYPOOL_PORT", "8080")]
        {
            assert!(is_unknown(name, value), "{name}");
        }
        for (name, value) in [
            ("KEYPOOL_REGISTRATION", "token"),
            ("KEYPOOL_CONFIG", "keypool.toml"),
            ("KEYPOOL_ADMIN_TOKEN_FILE", "/run/secrets/token"),
            ("KEYPOOL_SERVICE_HOST", "10.0.0.1"),
            ("KEYPOOL_SERVER_SERVICE_PORT_HTTP", "8080"),
            ("KEYPOOL_PORT", "tcp://10.0.0.1:8080"),
            ("KEYPOOL_PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("PATH", "/bin"),
        ] {
            assert!(!is_unknown(name, value), "{name}");
        }
    }

    #[test]
    fn a_secret_may_be_in_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        let with = |more: &[(&str, &str)]| {
            let named = ("KEYPOOL_DATABASE_URL_FILE".to_owned(), path.clone());
            let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            with_secrets([named].into_iter().chain(more).collect()).map_err(|error| error.to_string())
        };
        assert!(with(&[]).unwrap_err().contains("is empty"));
        fs::write(file.path(), "postgres://me:x@db/keypool\r\n").unwrap();
        assert_eq!(with(&[]).unwrap()["KEYPOOL_DATABASE_URL"], "postgres://me:x@db/keypool");
        assert!(with(&[("KEYPOOL_DATABASE_URL", "sqlite://x")]).unwrap_err().contains("set one of them"));
        assert!(with(&[("KEYPOOL_DATABASE_URL", "")]).is_ok());
        drop(file);
        let gone = with(&[]).unwrap_err();
        assert!(gone.contains(&path) && gone.contains("KEYPOOL_DATABASE_URL_FILE"), "{gone}");
    }
}
