//! HTTPS: the certificate and key that the configuration names, made ready for the listener.

use std::{path::Path, sync::Arc};

use anyhow::{Context, ensure};
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};

use crate::config::Config;

/// Makes ring what every TLS connection of this process uses where nothing else is named. Repeating it changes nothing.
pub fn use_ring() {
    let _ = ring::default_provider().install_default();
}

/// The listener's side of TLS 1.2 and 1.3; `None` where the configuration names no certificate.
///
/// # Errors
/// When a file cannot be read, has not in it what it should, or the key is not the certificate's.
pub fn server_config(config: &Config) -> anyhow::Result<Option<ServerConfig>> {
    let (Some(certificate), Some(key)) = (&config.tls_certificate, &config.tls_key) else { return Ok(None) };
    let (chain, private_key) = (chain(certificate)?, private_key(key)?);
    let provider: Arc<CryptoProvider> = ring::default_provider().into();
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, private_key)
        .with_context(|| {
            let (certificate, key) = (certificate.display(), key.display());
            format!("the key in {key} does not go with the first certificate in {certificate}")
        })?;
    Ok(Some(server))
}

fn chain(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let unreadable = || format!("cannot read the setting tls_certificate's file {}", file.display());
    let chain: Vec<_> = CertificateDer::pem_file_iter(file).and_then(Iterator::collect).with_context(unreadable)?;
    ensure!(
        !chain.is_empty(),
        "{} has no certificate in it: tls_certificate takes a PEM file, the server's own certificate first",
        file.display()
    );
    Ok(chain)
}

fn private_key(file: &Path) -> anyhow::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(file).map_err(|error| match error {
        pem::Error::NoItemsFound => anyhow::anyhow!(
            "{} has no private key in it: tls_key takes a PEM file with the key of tls_certificate, not encrypted",
            file.display()
        ),
        error => {
            anyhow::Error::new(error).context(format!("cannot read the setting tls_key's file {}", file.display()))
        }
    })
}
