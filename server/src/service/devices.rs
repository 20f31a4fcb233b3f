//! Devices: replaces tokens, and removes devices.

use keypool_openapi::{DeviceName, ProblemType, RemovedDevice, TokenResponse, UserName};
use keypool_validation::token::Token;

use super::Service;
use crate::{
    caller::Caller,
    problem::{Failure, unknown_token},
    store::{self, DeviceError},
};

impl Service {
    /// Replaces the token of one of the caller's own devices. Calls `forget` with the SHA-256 of the old token, also if
    /// the client has gone.
    pub(crate) async fn change_token(
        &self,
        caller: Caller,
        device: DeviceName,
        forget: impl FnOnce(&[u8; 32]) + Send + 'static,
    ) -> Result<TokenResponse, Failure> {
        self.block(move |service, _| {
            let (token, user) = (Token::generate()?, &caller.device.user);
            let old = service.store.change_token(caller.shown_token(), (user, &device), &token.hash());
            forget(&old.map_err(|error| not_changed(error, user, &device))?);
            Ok::<_, Failure>(TokenResponse { device, token: token.reveal().to_owned() })
        })
        .await
    }

    /// Removes a user's device and revokes all its KeyPackages. Without `by`, the operator removes it. Calls
    /// `forget` with the SHA-256 of the device's token, also if the client has gone.
    pub(crate) async fn remove(
        &self,
        user: UserName,
        device: DeviceName,
        by: Option<Caller>,
        forget: impl FnOnce(&[u8; 32]) + Send + 'static,
    ) -> Result<RemovedDevice, Failure> {
        self.block(move |service, now| {
            let by = by.as_ref().map(Caller::shown_token);
            let removed = service.store.remove((&user, &device), by, service.as_of(now));
            let removed = removed.map_err(|error| not_changed(error, &user, &device))?;
            forget(&removed.token_hash);
            service.fetches.ring(&removed.told);
            Ok::<_, Failure>(RemovedDevice { user, device, revoked: removed.revoked })
        })
        .await
    }
}

fn not_changed(error: store::Failure<DeviceError>, user: &UserName, device: &DeviceName) -> Failure {
    match error {
        store::Failure::Store(error) => error.into(),
        store::Failure::Refused(DeviceError::TokenRevoked) => unknown_token(),
        store::Failure::Refused(DeviceError::Unknown) => unknown_device(user, device),
    }
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
