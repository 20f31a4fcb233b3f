//! HTTPS: loads the configured certificate and key for the listener.

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

/// Makes ring the default provider of every TLS connection in this process. Repeated calls change nothing.
pub fn use_ring() {
    let _ = ring::default_provider().install_default();
}

/// Returns the configuration of TLS 1.2 and 1.3 for the listener; `None` if no certificate is configured.
///
/// # Errors
/// When a file cannot be read or has the wrong content, or when the key does not belong to the certificate.
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
