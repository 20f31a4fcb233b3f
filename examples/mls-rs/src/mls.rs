//! The settings of mls-rs with which a Keypool server accepts its KeyPackages.

use std::time::Duration;

use anyhow::{Context, Result};
use mls_rs::{
    CipherSuite, CipherSuiteProvider, Client, CryptoProvider, Group,
    client_builder::MlsConfig,
    client_builder::PaddingMode,
    identity::{
        SigningIdentity,
        basic::{BasicCredential, BasicIdentityProvider},
    },
    mls_rules::{DefaultMlsRules, EncryptionOptions},
};
use mls_rs_crypto_rustcrypto::RustCryptoProvider;

const CIPHERSUITE: CipherSuite = CipherSuite::CURVE25519_AES128;

/// The default of mls-rs is a year and an hour, and servers accept 90 days unless they say otherwise.
pub(crate) const LIFETIME: Duration = Duration::from_hours(14 * 24);

/// A client with one signature key for all of its KeyPackages: the server accepts no second one from a device. With
/// `in_the_open`, Commits and proposals are sent as a `PublicMessage`, which is the default of mls-rs, and shows the
/// server the leaves.
pub(crate) fn client(
    identity: &str,
    lifetime: Option<Duration>,
    in_the_open: bool,
) -> Result<Client<impl MlsConfig + use<>>> {
    let crypto = RustCryptoProvider::default();
    let suite = crypto.cipher_suite_provider(CIPHERSUITE).context("no such ciphersuite")?;
    let (secret, public) = suite.signature_key_generate().map_err(|error| anyhow::anyhow!("{error}"))?;
    let credential = BasicCredential::new(identity.as_bytes().to_vec()).into_credential();
    let rules =
        DefaultMlsRules::new().with_encryption_options(EncryptionOptions::new(!in_the_open, PaddingMode::default()));
    let mut builder =
        Client::builder().identity_provider(BasicIdentityProvider).crypto_provider(crypto).mls_rules(rules);
    if let Some(lifetime) = lifetime {
        builder = builder.key_package_lifetime(lifetime);
    }
    Ok(builder.signing_identity(SigningIdentity::new(credential, public), secret, CIPHERSUITE).build())
}

/// The proof that a device is a member in this epoch.
pub(crate) fn proof<C: MlsConfig>(group: &Group<C>) -> Result<Vec<u8>> {
    Ok(group.export_secret(b"keypool commit proof", &[], 32)?.as_bytes().to_vec())
}

/// The identities of the members other than this one.
pub(crate) fn others<C: MlsConfig>(group: &Group<C>) -> Vec<String> {
    let own = group.current_member_index();
    let members = group.roster().members().into_iter().filter(|member| member.index != own);
    let name = |member: mls_rs::group::Member| {
        let credential = member.signing_identity.credential.as_basic()?;
        String::from_utf8(credential.identifier.clone()).ok()
    };
    members.filter_map(name).collect()
}
