//! The tokens of the operator's identity provider: who may register as which user in the mode `jwt`.

mod cache;
mod key_set;
mod source;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use jsonwebtoken::{
    Algorithm, Header, Validation,
    errors::{Error, ErrorKind},
};
use keypool_openapi::UserName;
use serde::Deserialize;

use self::{
    cache::Cache,
    key_set::{Key, KeySet},
    source::Source,
};
use crate::{
    clock::Clock,
    config::{Config, Registration},
};

/// The most bytes of a token: a signature of the longest key and more claims than a provider puts in.
const MAX_TOKEN: usize = 8 * 1024;
/// How far the provider's clock may be from ours, in seconds.
const LEEWAY: f64 = 60.0;
/// How long the provider may take to answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a token names no user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// The token is invalid; the reason is for its sender.
    #[error("the identity provider's token is refused: {0}")]
    Invalid(String),
    /// There are no keys to verify it with, because the provider is away.
    #[error("the keys of the identity provider are not available now; try again in 30 seconds")]
    Unavailable,
}

/// Judges the identity provider's tokens.
pub struct JwtVerifier {
    keys: Arc<Cache>,
    validation: Validation,
    clock: Arc<dyn Clock>,
}

/// What is read of a token. What is missing gets the value that is refused; that it is missing says [`Validation`].
#[derive(Deserialize)]
#[serde(default)]
struct Claims {
    sub: String,
    exp: f64,
    nbf: f64,
}

impl Default for Claims {
    fn default() -> Self {
        Self { sub: String::new(), exp: f64::NEG_INFINITY, nbf: f64::NEG_INFINITY }
    }
}

impl JwtVerifier {
    /// The verifier that the configuration asks for: none where registration is not `jwt`. A file of keys is read now;
    /// a URL only when the first token comes, so that the server starts while the provider is away.
    ///
    /// # Errors
    /// When a setting is missing, the file of keys cannot be read or holds none that is of use, or there is no HTTP
    /// client.
    pub fn from_config(config: &Config, clock: Arc<dyn Clock>) -> anyhow::Result<Option<Self>> {
        Self::with_timeout(config, clock, FETCH_TIMEOUT)
    }

    fn with_timeout(config: &Config, clock: Arc<dyn Clock>, timeout: Duration) -> anyhow::Result<Option<Self>> {
        if config.registration != Registration::Jwt {
            return Ok(None);
        }
        let mut validation = Validation::default();
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[required("jwt_issuer", config.jwt_issuer.as_ref())?]);
        validation.set_audience(&[required("jwt_audience", config.jwt_audience.as_ref())?]);
        // It would ask the system's clock: `claimed_user` asks ours.
        validation.validate_exp = false;
        let source = Source::new(required("jwt_jwks", config.jwt_jwks.as_ref())?, timeout)?;
        let keys = Arc::new(Cache::new(source, Arc::clone(&clock))?);
        Ok(Some(Self { keys, validation, clock }))
    }

    /// The user that the token names by its `sub`.
    pub async fn verify(&self, token: &str) -> Result<UserName, JwtError> {
        let header = header(token)?;
        let keys = self.keys.current().await.ok_or(JwtError::Unavailable)?;
        if let Some(verdict) = self.verify_with(token, &header, &keys) {
            return verdict;
        }
        let keys = self.keys.refreshed().await.ok_or(JwtError::Unavailable)?;
        self.verify_with(token, &header, &keys).unwrap_or_else(|| {
            refused(
                "no key of the identity provider fits its kid and its signature; a new key is known within 30 seconds",
            )
        })
    }

    /// What these keys say of the token; `None` where a newer set of keys may say more.
    fn verify_with(&self, token: &str, header: &Header, keys: &KeySet) -> Option<Result<UserName, JwtError>> {
        let mut not_by_this_key = None;
        for key in keys.named(header.kid.as_deref()) {
            let error = match self.claims(token, header.alg, key) {
                Ok(claims) => return Some(self.claimed_user(claims)),
                Err(error) => error,
            };
            let verdict = reason(error.kind());
            if !matches!(error.kind(), ErrorKind::InvalidAlgorithm | ErrorKind::InvalidSignature) {
                return Some(verdict);
            }
            not_by_this_key = Some(verdict);
        }
        // A token that does not name its key may be of one that is newer than this set.
        not_by_this_key.filter(|_| header.kid.is_some())
    }

    fn claims(&self, token: &str, algorithm: Algorithm, key: &Key) -> Result<Claims, Error> {
        if !key.fits(algorithm) {
            return Err(ErrorKind::InvalidAlgorithm.into());
        }
        let validation = Validation { algorithms: vec![algorithm], ..self.validation.clone() };
        Ok(jsonwebtoken::decode::<Claims>(token, key.decoding(), &validation)?.claims)
    }

    fn claimed_user(&self, claims: Claims) -> Result<UserName, JwtError> {
        let now = self.clock.now().as_duration().as_secs_f64();
        if now >= claims.exp + LEEWAY {
            return refused("it has expired; get a new one from the identity provider");
        }
        if now < claims.nbf - LEEWAY {
            return refused("it is not valid yet (nbf): is a clock wrong?");
        }
        UserName::try_from(claims.sub).or_else(|error| refused(format!("its sub cannot be a user: {error}")))
    }
}

fn required<'a>(key: &str, value: Option<&'a String>) -> anyhow::Result<&'a String> {
    value.with_context(|| format!("the setting {key} is missing: it has to be set where registration is jwt"))
}

/// The token's header, where it is one that may be verified.
fn header(token: &str) -> Result<Header, JwtError> {
    if token.len() > MAX_TOKEN {
        return refused(format!("it is larger than {MAX_TOKEN} bytes"));
    }
    let allowed = key_set::ALGORITHMS;
    let header = jsonwebtoken::decode_header(token).ok().filter(|header| allowed.contains(&header.alg));
    let Some(header) = header else {
        return refused(format!("it is no signed JWT, or its alg is none of {allowed:?}"));
    };
    // RFC 7515, section 4.1.11: who does not know an extension that is critical has to refuse. We know none.
    if header.crit.is_some() {
        return refused("its header has critical extensions (crit), and this server knows none");
    }
    Ok(header)
}

/// What an error of the library means. Its own words might repeat parts of the token.
fn reason<T>(kind: &ErrorKind) -> Result<T, JwtError> {
    refused(match kind {
        ErrorKind::InvalidAlgorithm => "its alg is not one of the key that it names".to_owned(),
        ErrorKind::InvalidSignature => "its signature is not of the key that it names".to_owned(),
        ErrorKind::InvalidIssuer => "its iss is not the issuer that this server trusts".to_owned(),
        ErrorKind::InvalidAudience => {
            "its aud does not name this server: ask the identity provider for one that does".to_owned()
        }
        ErrorKind::MissingRequiredClaim(claim) => {
            format!("it has no {claim}, or one of another type than RFC 7519 says")
        }
        _ => "it cannot be read: it has to be base64url, sub a string, exp and nbf numbers".to_owned(),
    })
}

fn refused<T>(reason: impl Into<String>) -> Result<T, JwtError> {
    Err(JwtError::Invalid(reason.into()))
}
