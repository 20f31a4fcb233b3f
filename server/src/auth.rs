//! From a bearer token to an authenticated device.

use std::{future::Future, pin::Pin};

use actix_web::{FromRequest, HttpRequest, dev::Payload, http::header, web};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use keypool_openapi::ProblemType;
use rand::TryRng;
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::{pool::Pool, problem::Failure, store::DeviceRow};

/// What every token begins with, so that a secret scanner knows one when it sees it.
const PREFIX: &str = "keypool_";
const TOKEN_BYTES: usize = 32;

/// A device's bearer token: 256 random bits. Shown once; the server keeps its hash alone.
pub struct Token(SecretString);

impl Token {
    /// A new token.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn generate() -> Result<Self, Failure> {
        let mut secret = [0; TOKEN_BYTES];
        rand::rngs::SysRng.try_fill_bytes(&mut secret).map_err(|error| {
            tracing::error!(%error, "the operating system gives no random bytes");
            Failure::new(ProblemType::Internal, "The server has no source of randomness; try again later.")
        })?;
        Ok(Self(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(secret)).into()))
    }

    /// Reads a token from the value of an `Authorization` header; `None` where it is no bearer token of this server.
    #[must_use]
    pub fn from_header(value: &str) -> Option<Self> {
        let (scheme, token) = value.split_once(' ')?;
        let token = token.trim();
        let secret = URL_SAFE_NO_PAD.decode(token.strip_prefix(PREFIX)?).ok()?;
        (scheme.eq_ignore_ascii_case("bearer") && secret.len() == TOKEN_BYTES).then(|| Self(token.into()))
    }

    /// What the server keeps of it.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0.expose_secret()).into()
    }

    /// The token itself, for the one answer that shows it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        self.0.expose_secret()
    }
}

/// The device that makes a request, known by its token.
#[derive(Clone, Debug)]
pub struct Caller(pub DeviceRow);

/// The device that makes a request, where it may be nobody yet. A token that is given must be valid.
#[derive(Clone, Debug)]
pub struct MaybeCaller(pub Option<DeviceRow>);

/// A device's request: the caller, and then the body, which is not even read before the caller is known.
pub struct Signed<T>(pub DeviceRow, pub T);

type Extracted<T, E = Failure> = Pin<Box<dyn Future<Output = Result<T, E>>>>;

impl FromRequest for Caller {
    type Error = Failure;
    type Future = Extracted<Self>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move {
            authenticate(&request).await?.map(Self).ok_or_else(|| {
                Failure::new(
                    ProblemType::Unauthenticated,
                    "The request carries no bearer token. POST /devices registers a device and answers its token; send it \
                     as `Authorization: Bearer TOKEN`.",
                )
            })
        })
    }
}

impl<T: DeserializeOwned + 'static> FromRequest for Signed<T> {
    type Error = actix_web::Error;
    type Future = Extracted<Self, actix_web::Error>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let (request, mut payload) = (request.clone(), payload.take());
        Box::pin(async move {
            let Caller(caller) = Caller::from_request(&request, &mut Payload::None).await?;
            let body = web::Json::<T>::from_request(&request, &mut payload).await?;
            Ok(Self(caller, body.into_inner()))
        })
    }
}

impl FromRequest for MaybeCaller {
    type Error = Failure;
    type Future = Extracted<Self>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move { authenticate(&request).await.map(Self) })
    }
}

async fn authenticate(request: &HttpRequest) -> Result<Option<DeviceRow>, Failure> {
    let Some(value) = request.headers().get(header::AUTHORIZATION) else { return Ok(None) };
    let refused = || {
        Failure::new(
            ProblemType::Unauthenticated,
            "The bearer token is not of any registered device. Check that it is the one that POST /devices answered.",
        )
    };
    let token = value.to_str().ok().and_then(Token::from_header).ok_or_else(refused)?;
    let pool = request
        .app_data::<web::Data<Pool>>()
        .cloned()
        .ok_or_else(|| Failure::new(ProblemType::Internal, "The server was put together without its pool."))?;
    pool.authenticate(token).await?.ok_or_else(refused).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_header_and_nothing_else_does() {
        let token = Token::generate().unwrap();
        let read = Token::from_header(&format!("Bearer {}", token.reveal())).unwrap();
        assert_eq!(read.hash(), token.hash());
        assert!(Token::from_header(&format!("bearer {}", token.reveal())).is_some());
        for bad in [
            "",
            "Bearer",
            "Bearer keypool_",
            "Bearer keypool_AAAA",
            &format!("Basic {}", token.reveal()),
            &format!("Bearer {}", &token.reveal()[PREFIX.len()..]),
            &format!("Bearer {}A", token.reveal()),
        ] {
            assert!(Token::from_header(bad).is_none(), "{bad:?} was taken");
        }
        assert_ne!(Token::generate().unwrap().hash(), token.hash());
    }
}
