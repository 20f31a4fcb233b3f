//! Registration: adds a device to a user.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use keypool_openapi::{DeviceName, ProblemType, RegisterRequest, RegisterResponse, UserName};
use keypool_validation::token::Token;
use sha2::Sha256;

use super::Service;
use crate::{
    caller::{Bearer, RequestKey},
    config::Registration,
    problem::{Failure, unknown_token},
    store::{self, Grant, NewDevice, RegisterError, ServerKey, StoreError},
};

/// The `Idempotency-Key` of a registration gives access to its answer, and so to the token. It must not be guessable.
const REGISTRATION_KEY_LENGTH: usize = 32;

impl Service {
    /// Registers a device of a new user, or another device of the caller's own user.
    pub async fn register(
        &self,
        request: RegisterRequest,
        bearer: Option<Bearer>,
        key: Option<RequestKey>,
    ) -> Result<RegisterResponse, Failure> {
        let RegisterRequest { user, device } = request;
        if key.as_ref().is_some_and(|key| key.bytes().len() < REGISTRATION_KEY_LENGTH) {
            return Err(Failure::new(
                ProblemType::MalformedRequest,
                format!(
                    "The Idempotency-Key of a registration must have at least {REGISTRATION_KEY_LENGTH} characters, since it \
                     protects the token. Send a random one, such as a UUID."
                ),
            ));
        }
        let stranger = matches!(&bearer, Some(Bearer::Device(caller)) if caller.device.user != user);
        let grant = self.grant(&user, bearer)?;
        self.block(move |service, now| {
            let token = match &key {
                None => TokenOf::Once(Token::generate()?),
                Some(key) => TokenOf::repeatable(service, key, (&user, &device))?,
            };
            let new = NewDevice {
                user,
                device,
                grant,
                repeat_key: key.as_ref().map(RequestKey::hash),
                repeats_since: before(now, service.policy.idempotency_window),
                most: service.policy.max_devices,
            };
            match service.store.register(&new, &|at| token.at(at).hash(), now) {
                Ok(registered) => {
                    service.fetches.ring(&registered.told);
                    let token = token.at(registered.at).reveal().to_owned();
                    Ok(RegisterResponse { user: new.user, device: new.device, token })
                }
                Err(store::Failure::Refused(error)) => {
                    if error == RegisterError::NotLinked {
                        service.store.count_link_guess(&new.user, now)?;
                    }
                    Err(not_registered(error, &new, stranger))
                }
                Err(store::Failure::Store(error)) => Err(error.into()),
            }
        })
        .await
    }

    /// Returns the caller's permission to register a device of the user.
    fn grant(&self, user: &UserName, bearer: Option<Bearer>) -> Result<Grant, Failure> {
        match (self.policy.registration, bearer) {
            (_, Some(Bearer::Device(caller))) if caller.device.user == *user => {
                Ok(Grant::SameUser(caller.shown_token()))
            }
            (_, Some(Bearer::Enrolment(hash))) => Ok(Grant::Enrolment(hash)),
            (_, Some(Bearer::Link(hash))) => Ok(Grant::Link(hash)),
            (_, Some(Bearer::Admin)) => Err(Failure::new(
                ProblemType::Forbidden,
                "The admin token registers no devices. `keypool-server enrol` makes a token that does.",
            )),
            (Registration::Open, None | Some(Bearer::Device(_))) => Ok(Grant::FirstCome),
            (Registration::Token, None) => Err(Failure::new(
                ProblemType::Unauthenticated,
                "Registration needs an enrolment token. Ask the operator for one, and send it as `Authorization: Bearer \
                 TOKEN`.",
            )),
            (Registration::Jwt, None) => Err(Failure::new(
                ProblemType::Unauthenticated,
                "Registration needs a token of the identity provider of this server. Send it as `Authorization: Bearer \
                 TOKEN`.",
            )),
            (_, Some(Bearer::Device(_))) => Err(not_that_user(user, true)),
            (Registration::Jwt, Some(Bearer::User(subject))) if subject == *user => Ok(Grant::FirstCome),
            (Registration::Jwt, Some(Bearer::User(subject))) => Err(Failure::new(
                ProblemType::Forbidden,
                format!("The identity provider's token is {subject}'s, and registers no device of {user}."),
            )),
            (_, Some(Bearer::User(_) | Bearer::Stranger)) => Err(Failure::new(
                ProblemType::Unauthenticated,
                "The bearer token does not allow registration on this server. Ask its operator what registration needs.",
            )),
        }
    }
}

/// The token of a registration.
enum TokenOf {
    /// A random token, of a request that cannot be repeated.
    Once(Token),
    /// Each repetition of the request gets the same token, so that a request that is overtaken by its own repetition
    /// does not replace the token of the answer that arrived. It depends on a key of the servers and on the whole
    /// `Idempotency-Key`, of which the database has only a hash.
    Repeatable(Hmac<Sha256>),
}

impl TokenOf {
    fn repeatable(
        service: &Service,
        key: &RequestKey,
        (user, device): (&UserName, &DeviceName),
    ) -> Result<Self, StoreError> {
        let server_key = service.store.server_key(ServerKey::Registrations)?;
        let mut mac = Hmac::<Sha256>::new_from_slice(&server_key).map_err(StoreError::fatal)?;
        // No name contains a zero byte, so different names and keys never give the same input.
        for part in [user.as_str().as_bytes(), device.as_str().as_bytes(), key.bytes()] {
            mac.update(part);
            mac.update(&[0]);
        }
        Ok(Self::Repeatable(mac))
    }

    /// The token, if the device was registered at this time.
    fn at(&self, registered_at: Timestamp) -> Token {
        match self {
            Self::Once(token) => token.clone(),
            Self::Repeatable(mac) => {
                let mac = mac.clone().chain_update(registered_at.as_second().to_be_bytes());
                Token::with_secret(mac.finalize().into_bytes().into())
            }
        }
    }
}

fn before(now: Timestamp, span: Duration) -> Timestamp {
    now.saturating_sub(span).unwrap_or(Timestamp::MIN)
}

fn not_registered(error: RegisterError, new: &NewDevice, stranger: bool) -> Failure {
    let NewDevice { user, device, most, .. } = new;
    match error {
        RegisterError::AlreadyRegistered => Failure::new(
            ProblemType::AlreadyRegistered,
            format!("{user} has a device {device} already. Choose another name for the new device."),
        ),
        RegisterError::NotThatUser => not_that_user(user, stranger),
        RegisterError::NotEnrolled => Failure::new(
            ProblemType::Unauthenticated,
            format!(
                "The enrolment token is not valid for {user}: it is another user's, used, or expired. Ask the operator for a new one."
            ),
        ),
        RegisterError::NotLinked => Failure::new(
            ProblemType::Unauthenticated,
            format!(
                "The code is not valid for {user}: it is mistyped, another user's, used, or over. Make a new one on the other device."
            ),
        ),
        RegisterError::TokenRevoked => unknown_token(),
        RegisterError::TooManyDevices => Failure::new(
            ProblemType::Forbidden,
            format!("{user} has {most} devices, the most that a user may have. Remove one that is no longer used."),
        ),
    }
}

/// The answer is the same whether or not the user has a device of that name, so that a stranger cannot find out.
fn not_that_user(user: &UserName, stranger: bool) -> Failure {
    Failure::new(
        if stranger { ProblemType::Forbidden } else { ProblemType::Unauthenticated },
        format!(
            "The user {user} exists. Register a further device with the bearer token of one of the user's devices."
        ),
    )
}
