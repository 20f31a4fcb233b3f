//! Reads the values of settings. An error names what was typed, what is allowed, and an example.

use std::net::{SocketAddr, ToSocketAddrs};

use serde::{
    Deserialize, Deserializer,
    de::{Error, IntoDeserializer, value},
};

/// A setting with a few values, each a word.
pub(super) trait Choice: for<'de> Deserialize<'de> {
    /// The words.
    const WORDS: &'static [&'static str];
}

/// Reads one of the words of a setting.
pub(super) fn choice<'de, D: Deserializer<'de>, T: Choice>(deserializer: D) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    let word: value::StrDeserializer<'_, value::Error> = text.as_str().into_deserializer();
    T::deserialize(word).map_err(|_| D::Error::custom(format_args!("{text:?} is not one of {}", T::WORDS.join(", "))))
}

/// Reads where to listen: an address, or the name of a host.
pub(super) fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    address(&text).map_err(D::Error::custom)
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let example = "give HOST:PORT, such as 127.0.0.1:8080, [::1]:8080 or localhost:8080";
    let found = text.to_socket_addrs().map(|mut addresses| addresses.next());
    match found {
        Ok(Some(address)) => Ok(address),
        Ok(None) => Err(format!("{text:?} has no address: {example}")),
        Err(error) => Err(format!("{text:?} is not an address ({error}): {example}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_listened_at_by_its_name() {
        assert!(address("localhost:8080").unwrap().ip().is_loopback());
        assert_eq!(address("[::1]:80").unwrap().port(), 80);
        for bad in ["8080", "localhost", "127.0.0.1:99999", ""] {
            let error = address(bad).unwrap_err();
            assert!(error.contains(&format!("{bad:?}")) && error.contains("localhost:8080"), "{error}");
        }
    }
}
