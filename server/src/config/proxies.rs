//! The proxies that an operator names, and the client's address behind them.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Addresses or networks of proxies. Their `X-Forwarded-For` header is trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct TrustedProxies(Vec<IpNet>);

/// An entry that is neither an address nor a network.
#[derive(Debug, thiserror::Error)]
#[error(
    "trusted_proxies names {0}, which is neither an address, such as 192.0.2.1, nor a network, such as 192.0.2.0/24"
)]
pub struct NoAddress(String);

impl TryFrom<Vec<String>> for TrustedProxies {
    type Error = NoAddress;

    fn try_from(names: Vec<String>) -> Result<Self, Self::Error> {
        let parse = |name: String| {
            let net = name.parse().or_else(|_| name.parse::<IpAddr>().map(IpNet::from));
            net.map_err(|_| NoAddress(name))
        };
        names.into_iter().map(parse).collect::<Result<_, _>>().map(Self)
    }
}

impl From<TrustedProxies> for Vec<String> {
    fn from(proxies: TrustedProxies) -> Self {
        proxies.0.iter().map(ToString::to_string).collect()
    }
}

impl fmt::Display for TrustedProxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Vec::from(self.clone()).join(","))
    }
}

impl TrustedProxies {
    /// Whether no proxy is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn has(&self, address: IpAddr) -> bool {
        self.0.iter().any(|net| net.contains(&address))
    }

    /// Returns the address of a request's client. That is the peer, or, if the peer is a trusted proxy, the last
    /// address in `X-Forwarded-For` that is not a trusted proxy. The client can forge all addresses before that one.
    #[must_use]
    pub fn client<'a>(&self, peer: IpAddr, forwarded: impl DoubleEndedIterator<Item = &'a str>) -> IpAddr {
        let mut client = peer.to_canonical();
        for entry in forwarded.rev().flat_map(|header| header.rsplit(',')) {
            if !self.has(client) {
                break;
            }
            let Some(before) = address(entry.trim()) else { break };
            client = before.to_canonical();
        }
        client
    }
}

/// Parses an address as proxies write it, with or without a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(names: &[&str]) -> TrustedProxies {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        names.try_into().unwrap()
    }

    #[test]
    fn a_client_is_the_last_who_is_no_proxy() {
        let proxies = proxies(&["10.0.0.0/8", "192.0.2.1", "fd00::/8"]);
        for (peer, forwarded, client) in [
            // The header of a peer that is no trusted proxy is ignored.
            ("203.0.113.9", vec!["198.51.100.1"], "203.0.113.9"),
            ("10.1.2.3", vec!["198.51.100.1"], "198.51.100.1"),
            // Entries that a client adds precede the entry that the proxy adds.
            ("10.1.2.3", vec!["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
            ("10.1.2.3", vec!["1.1.1.1", "198.51.100.1,192.0.2.1"], "198.51.100.1"),
            ("10.1.2.3", vec!["198.51.100.1:4711"], "198.51.100.1"),
            ("::ffff:10.1.2.3", vec!["[2001:db8::1]:4711"], "2001:db8::1"),
            ("fd00::1", vec!["[2001:db8::1]"], "2001:db8::1"),
            ("10.1.2.3", vec!["1.1.1.1, unknown, 192.0.2.1"], "192.0.2.1"),
            ("10.1.2.3", vec![""], "10.1.2.3"),
            ("10.1.2.3", vec![], "10.1.2.3"),
            ("10.1.2.3", vec!["10.9.9.9"], "10.9.9.9"),
        ] {
            let found = proxies.client(peer.parse().unwrap(), forwarded.iter().copied());
            assert_eq!(found.to_string(), client, "{peer} {forwarded:?}");
        }
    }

    #[test]
    fn what_is_no_address_is_named() {
        let error = TrustedProxies::try_from(vec!["192.0.2.0/33".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("192.0.2.0/33"), "{error}");
    }
}
