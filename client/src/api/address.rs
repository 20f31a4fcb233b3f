//! The address of a server.

use std::net::IpAddr;

use http::Uri;

use crate::error::{Error, Result};

/// Reads the address of a server, and ends it with a slash so that paths can be joined to it. Addresses of one server that
/// differ only in the case of the host or in the usual port become the same.
///
/// A host name with letters beyond ASCII is given in its ASCII form, `xn--…`.
pub(crate) fn server_address(text: &str) -> Result<String> {
    parse(text).ok_or_else(|| Error::ServerAddress(text.to_owned()))
}

fn parse(text: &str) -> Option<String> {
    let uri: Uri = text.parse().ok().filter(|uri: &Uri| uri.query().is_none() && !text.contains('#'))?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    let usual_port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    // A name and a password would be in every message about the server.
    if authority.host().is_empty() || authority.as_str().contains('@') {
        return None;
    }
    let port = authority.port_u16().filter(|port| *port != usual_port);
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    let path = uri.path().trim_end_matches('/');
    Some(format!("{scheme}://{}{port}{path}/", authority.host().to_ascii_lowercase()))
}

/// Whether traffic to this address is unencrypted and leaves this machine, so that others could read the bearer token.
#[must_use]
pub fn is_in_the_clear(server: &str) -> bool {
    server.parse::<Uri>().is_ok_and(|uri| {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_ascii_lowercase();
        let is_loopback = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        let is_here = is_loopback || host == "localhost" || host.ends_with(".localhost");
        uri.scheme_str() == Some("http") && !is_here
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_their_path_and_must_be_http() {
        for (given, address) in [
            ("http://localhost:8080", "http://localhost:8080/"),
            ("HTTPS://Example.org:443", "https://example.org/"),
            ("http://[::1]:8080/", "http://[::1]:8080/"),
            ("https://example.org/keypool", "https://example.org/keypool/"),
            ("http://xn--bcher-kva.example", "http://xn--bcher-kva.example/"),
        ] {
            assert_eq!(server_address(given).unwrap(), address);
            assert_eq!(server_address(address).unwrap(), address);
        }
        for wrong in [
            "",
            "localhost:8080",
            "ftp://example.org",
            "example.org",
            "http://a/?b",
            "http://a/#b",
            "http://",
            "http://:80",
            "http://alice:secret@example.org",
        ] {
            assert!(server_address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_http_to_another_machine_is_in_the_clear() {
        for clear in
            ["http://example.org", "http://10.0.0.1:8080/", "http://localhost.example.org", "http://[fe80::1]/"]
        {
            assert!(is_in_the_clear(clear), "{clear}");
        }
        for safe in ["https://example.org", "http://localhost:8080", "http://127.0.0.1", "http://[::1]:8080/"] {
            assert!(!is_in_the_clear(safe), "{safe}");
        }
    }
}
