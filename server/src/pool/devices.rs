//! Who comes in: registration, tokens, removal.

use std::time::Duration;

use jiff::Timestamp;
use keypool_openapi::{
    DeviceName, ProblemType, RegisterRequest, RegisterResponse, RemovedDevice, TokenResponse, UserName,
};
use keypool_validation::token::Token;
use secrecy::ExposeSecret;

use super::Pool;
use crate::{
    auth::{Bearer, Caller, jwt::JwtError, unknown_token},
    config::Registration,
    problem::Failure,
    store::{DeviceError, Grant, NewDevice, RegisterError},
};

/// The `Idempotency-Key` of a registration opens its answer, and so the token: nobody must be able to guess it.
const REGISTRATION_KEY_LENGTH: usize = 32;

/// An identity provider that is away is not asked again sooner.
const PROVIDER_RETRY: Duration = Duration::from_secs(30);

impl Pool {
    /// Registers a device: of a new user, or of the caller's own.
    pub async fn register(
        &self,
        request: RegisterRequest,
        bearer: Option<Bearer>,
        key: Option<([u8; 32], usize)>,
    ) -> Result<RegisterResponse, Failure> {
        let RegisterRequest { user, device } = request;
        if key.is_some_and(|(_, length)| length < REGISTRATION_KEY_LENGTH) {
            return Err(Failure::new(
                ProblemType::MalformedRequest,
                format!(
                    "The Idempotency-Key of a registration must have at least {REGISTRATION_KEY_LENGTH} characters, since it \
                     protects the token. Send a random one, such as a UUID."
                ),
            ));
        }
        let stranger = matches!(&bearer, Some(Bearer::Device(caller)) if caller.device.user != user);
        let grant = self.grant(&user, bearer).await?;
        self.block(move |pool, now| {
            let token = Token::generate()?;
            let new = NewDevice {
                user,
                device,
                token_hash: token.hash(),
                grant,
                repeat_key: key.map(|(hash, _)| hash),
                repeats_since: before(now, pool.policy.idempotency_window),
                most: pool.policy.max_devices,
            };
            match pool.store.register(&new, now) {
                Ok(told) => {
                    pool.fetches.ring(&told);
                    Ok(RegisterResponse { user: new.user, device: new.device, token: token.reveal().to_owned() })
                }
                Err(error) => Err(not_registered(error, &new, stranger)),
            }
        })
        .await
    }

    /// What a caller may do for a user by what it shows.
    async fn grant(&self, user: &UserName, bearer: Option<Bearer>) -> Result<Grant, Failure> {
        match (self.policy.registration, bearer) {
            (_, Some(Bearer::Device(caller))) if caller.device.user == *user => {
                Ok(Grant::SameUser(caller.shown_token()))
            }
            (_, Some(Bearer::Enrolment(hash))) => Ok(Grant::Enrolment(hash)),
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
            (Registration::Jwt, Some(Bearer::Foreign(token))) => self.identity(user, token.expose_secret()).await,
            (_, Some(Bearer::Foreign(_))) => Err(Failure::new(
                ProblemType::Unauthenticated,
                "The bearer token does not allow registration on this server. Ask its operator what registration needs.",
            )),
        }
    }

    /// What a token of the identity provider lets its bearer do for a user.
    async fn identity(&self, user: &UserName, token: &str) -> Result<Grant, Failure> {
        let Some(verifier) = &self.provider else {
            return Err(Failure::new(
                ProblemType::Internal,
                "The server was put together without its identity provider.",
            ));
        };
        match verifier.verify(token).await {
            Ok(subject) if subject == *user => Ok(Grant::FirstCome),
            Ok(subject) => Err(Failure::new(
                ProblemType::Forbidden,
                format!("The identity provider's token is {subject}'s, and registers no device of {user}."),
            )),
            Err(JwtError::Invalid(reason)) => Err(Failure::new(
                ProblemType::Unauthenticated,
                format!("The identity provider's token is refused: {reason}. Sign in again, and send the new one."),
            )),
            Err(JwtError::Unavailable) => Err(Failure {
                retry_after: Some(PROVIDER_RETRY),
                ..Failure::new(
                    ProblemType::Unavailable,
                    "The keys of the identity provider are not available now. Try again later.",
                )
            }),
        }
    }

    /// Gives one of the caller's own devices another token.
    pub async fn change_token(&self, caller: Caller, device: DeviceName) -> Result<TokenResponse, Failure> {
        self.block(move |pool, _| {
            let (token, user) = (Token::generate()?, &caller.device.user);
            let old = pool.store.change_token(caller.shown_token(), (user, &device), &token.hash());
            pool.tokens.forget(&old.map_err(|error| not_changed(error, user, &device))?);
            Ok::<_, Failure>(TokenResponse { device, token: token.reveal().to_owned() })
        })
        .await
    }

    /// Removes a device of a user, with all that is in its pool. Without `by`, the operator does it.
    pub async fn remove(
        &self,
        user: UserName,
        device: DeviceName,
        by: Option<Caller>,
    ) -> Result<RemovedDevice, Failure> {
        self.block(move |pool, now| {
            let removed = pool.store.remove((&user, &device), by.as_ref().map(Caller::shown_token), pool.as_of(now));
            let removed = removed.map_err(|error| not_changed(error, &user, &device))?;
            pool.tokens.forget(&removed.token_hash);
            pool.fetches.ring(&removed.told);
            Ok::<_, Failure>(RemovedDevice { user, device, revoked: removed.revoked })
        })
        .await
    }
}

fn before(now: Timestamp, span: Duration) -> Timestamp {
    now.saturating_sub(span).unwrap_or(Timestamp::MIN)
}

fn not_registered(error: RegisterError, new: &NewDevice, stranger: bool) -> Failure {
    let NewDevice { user, device, most, .. } = new;
    match error {
        RegisterError::Store(error) => error.into(),
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
        RegisterError::TokenRevoked(_) => unknown_token(),
        RegisterError::TooManyDevices => Failure::new(
            ProblemType::Forbidden,
            format!("{user} has {most} devices, the most that a user may have. Remove one that is no longer used."),
        ),
    }
}

fn not_changed(error: DeviceError, user: &UserName, device: &DeviceName) -> Failure {
    match error {
        DeviceError::Store(error) => error.into(),
        DeviceError::TokenRevoked(_) => unknown_token(),
        DeviceError::Unknown => unknown_device(user, device),
    }
}

/// The same whether or not the user has a device of that name: that is no stranger's business.
fn not_that_user(user: &UserName, stranger: bool) -> Failure {
    Failure::new(
        if stranger { ProblemType::Forbidden } else { ProblemType::Unauthenticated },
        format!(
            "The user {user} exists. Register a further device with the bearer token of one of the user's devices."
        ),
    )
}

pub(super) fn unknown_user(user: &UserName) -> Failure {
    Failure::new(ProblemType::UnknownUser, format!("There is no user {user}. Check the name; it is case-sensitive."))
}

pub(super) fn unknown_device(user: &UserName, device: &DeviceName) -> Failure {
    Failure::new(
        ProblemType::UnknownDevice,
        format!("{user} has no device {device}. GET /users/{user}/devices lists the devices."),
    )
}
