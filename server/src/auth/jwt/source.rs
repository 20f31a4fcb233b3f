//! The source of the identity provider's keys: a file or a URL.

use std::{
    fmt,
    fs::File,
    io::Read,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use reqwest::{Client, Url, redirect::Policy};

use super::key_set::KeySet;

/// The largest JWK Set, in bytes.
const MAX_JWKS: usize = 1024 * 1024;

/// A file or a URL with a JWK Set.
pub(super) enum Source {
    File(PathBuf),
    Url(Client, Url),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            // Leaves out the parts that may be secret: user, password and query.
            Self::Url(_, url) => write!(f, "{}{}", url.origin().ascii_serialization(), url.path()),
        }
    }
}

/// Whether an attacker on the network could read and change the answers of this URL.
fn is_in_the_clear(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_loopback = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    url.scheme() == "http" && !is_loopback && host != "localhost" && !host.ends_with(".localhost")
}

impl Source {
    /// Creates the source that the setting `jwt_jwks` names.
    pub(super) fn new(jwks: &str, timeout: Duration) -> anyhow::Result<Self> {
        let Some(url) = Url::parse(jwks).ok().filter(|url| ["http", "https"].contains(&url.scheme())) else {
            return Ok(Self::File(jwks.into()));
        };
        if is_in_the_clear(&url) {
            let source = url.origin().ascii_serialization();
            tracing::warn!(
                source,
                "the identity provider's keys come over plain HTTP: anyone on the network path can replace them"
            );
        }
        crate::tls::use_ring();
        let client = Client::builder()
            .user_agent(concat!("keypool-server/", env!("CARGO_PKG_VERSION")))
            .timeout(timeout)
            // The operator names the host of the keys; a redirect could lead to another host.
            .redirect(Policy::none())
            // Fetches are minutes apart, and a connection lives no longer than the thread that opened it.
            .pool_max_idle_per_host(0)
            .build()
            .context("cannot fetch the keys of jwt_jwks over HTTP: are there root certificates on this machine?")?;
        Ok(Self::Url(client, url))
    }

    /// Returns the keys if they are in a file, which needs no request.
    pub(super) fn read_local(&self) -> Option<anyhow::Result<KeySet>> {
        match self {
            Self::File(path) => Some(read_file(path)),
            Self::Url(..) => None,
        }
    }

    /// Reads the keys.
    pub(super) async fn read(&self) -> anyhow::Result<KeySet> {
        match self {
            Self::File(path) => {
                let path = path.clone();
                tokio::task::spawn_blocking(move || read_file(&path)).await?
            }
            Self::Url(client, url) => KeySet::parse(&fetch(client, url).await?),
        }
    }
}

fn read_file(path: &Path) -> anyhow::Result<KeySet> {
    let mut json = Vec::new();
    // Reads one byte more than allowed, to detect a file that is too large.
    File::open(path)?.take(MAX_JWKS as u64 + 1).read_to_end(&mut json)?;
    ensure_size(json.len())?;
    KeySet::parse(&json)
}

async fn fetch(client: &Client, url: &Url) -> anyhow::Result<Vec<u8>> {
    let mut response = client.get(url.clone()).send().await.map_err(reqwest::Error::without_url)?;
    ensure!(response.status().is_success(), "it answered {}", response.status());
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
        ensure_size(body.len() + chunk.len())?;
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn ensure_size(bytes: usize) -> anyhow::Result<()> {
    ensure!(bytes <= MAX_JWKS, "it is larger than {MAX_JWKS} bytes");
    Ok(())
}
