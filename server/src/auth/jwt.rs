//! Verifies tokens of the operator's identity provider. They name the users that a caller may register in the mode
//! `jwt`.

mod cache;
mod key_set;
mod source;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::Context;
use jsonwebtoken::{
    Algorithm, Header, Validation,
    errors::{Error, ErrorKind},
};
use keypool_openapi::UserName;
use serde::Deserialize;
use serde_json::Value;

use self::{
    cache::Cache,
    key_set::{Key, KeySet},
    source::Source,
};
use crate::{
    clock::Clock,
    config::{Config, Registration},
};

/// The largest token, in bytes: enough for a signature with the longest key and for more claims than a provider adds.
const MAX_TOKEN: usize = 8 * 1024;
/// The largest allowed difference between the provider's clock and this server's, in seconds.
const LEEWAY: f64 = 60.0;
/// Timeout of a fetch from the provider.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// The reason why a token names no user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// The token is invalid. The text is for its sender.
    #[error("the identity provider's token is refused: {0}")]
    Invalid(String),
    /// There are no keys to verify the token with, because the provider cannot be reached.
    #[error("the keys of the identity provider are not available now; try again in 30 seconds")]
    Unavailable,
}

/// Verifies the identity provider's tokens.
pub struct JwtVerifier {
    keys: Arc<Cache>,
    validation: Validation,
    /// The claim that names the user.
    user_claim: String,
    clock: Arc<dyn Clock>,
}

/// The claims that are read. A missing claim gets a value that is refused; [`Validation`] reports it as missing.
#[derive(Deserialize)]
#[serde(default)]
struct Claims {
    exp: f64,
    nbf: f64,
    #[serde(flatten)]
    others: HashMap<String, Value>,
}

impl Default for Claims {
    fn default() -> Self {
        Self { exp: f64::NEG_INFINITY, nbf: f64::NEG_INFINITY, others: HashMap::new() }
    }
}

impl JwtVerifier {
    /// Creates the configured verifier; `None` if registration is not `jwt`. A file of keys is read now. A URL is read
    /// when the first token arrives, so that the server can start while the provider is unreachable.
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
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.set_issuer(&[required("jwt_issuer", config.jwt_issuer.as_ref())?]);
        validation.set_audience(&[required("jwt_audience", config.jwt_audience.as_ref())?]);
        // The library would use the system's clock; `claimed_user` uses the injected clock.
        validation.validate_exp = false;
        let source = Source::new(required("jwt_jwks", config.jwt_jwks.as_ref())?, timeout)?;
        let keys = Arc::new(Cache::new(source, Arc::clone(&clock))?);
        Ok(Some(Self { keys, validation, user_claim: config.jwt_user_claim.clone(), clock }))
    }

    /// Verifies a token, and returns the user that it names.
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

    /// Verifies a token with these keys; `None` if a newer set of keys may give another result.
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
        // A token without a `kid` may be signed by a key that is newer than this set.
        not_by_this_key.filter(|_| header.kid.is_some())
    }

    fn claims(&self, token: &str, algorithm: Algorithm, key: &Key) -> Result<Claims, Error> {
        if !key.fits(algorithm) {
            return Err(ErrorKind::InvalidAlgorithm.into());
        }
        let validation = Validation { algorithms: vec![algorithm], ..self.validation.clone() };
        Ok(jsonwebtoken::decode::<Claims>(token, key.decoding(), &validation)?.claims)
    }

    fn claimed_user(&self, mut claims: Claims) -> Result<UserName, JwtError> {
        let now = self.clock.now().as_duration().as_secs_f64();
        if now >= claims.exp + LEEWAY {
            return refused("it has expired; get a new one from the identity provider");
        }
        if now < claims.nbf - LEEWAY {
            return refused("it is not valid yet (nbf): is a clock wrong?");
        }
        let name = &self.user_claim;
        match claims.others.remove(name) {
            None | Some(Value::Null) => refused(format!("it has no {name}")),
            Some(Value::String(user)) => {
                UserName::try_from(user).or_else(|error| refused(format!("its {name} cannot be a user: {error}")))
            }
            Some(_) => refused(format!("its {name} is not a string")),
        }
    }
}

fn required<'a>(key: &str, value: Option<&'a String>) -> anyhow::Result<&'a String> {
    value.with_context(|| format!("the setting {key} is missing: it has to be set where registration is jwt"))
}

/// Parses the token's header, and refuses headers that cannot be verified.
fn header(token: &str) -> Result<Header, JwtError> {
    if token.len() > MAX_TOKEN {
        return refused(format!("it is larger than {MAX_TOKEN} bytes"));
    }
    let allowed = key_set::ALGORITHMS;
    let header = jsonwebtoken::decode_header(token).ok().filter(|header| allowed.contains(&header.alg));
    let Some(header) = header else {
        return refused(format!("it is no signed JWT, or its alg is none of {allowed:?}"));
    };
    // RFC 7515, section 4.1.11: a verifier must refuse critical extensions that it does not know. This server knows
    // none.
    if header.crit.is_some() {
        return refused("its header has critical extensions (crit), and this server knows none");
    }
    Ok(header)
}

/// Explains an error of the library. The library's own text might repeat parts of the token.
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
        _ => "it cannot be read: it has to be base64url, exp and nbf numbers".to_owned(),
    })
}

fn refused<T>(reason: impl Into<String>) -> Result<T, JwtError> {
    Err(JwtError::Invalid(reason.into()))
}
