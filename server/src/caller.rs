//! The caller of a request.

use std::sync::Arc;

use keypool_openapi::UserName;
use sha2::{Digest, Sha256};

use crate::store::{DeviceRow, ShownToken};

/// The device that makes a request, identified by its token.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The device.
    pub device: Arc<DeviceRow>,
    /// The SHA-256 of the device's token.
    pub token_hash: [u8; 32],
}

impl Caller {
    /// The token. Each verb that changes something checks it again, since a cached token may have been revoked.
    pub(crate) fn shown_token(&self) -> ShownToken {
        ShownToken { device: self.device.id, token_hash: self.token_hash }
    }
}

/// The `Idempotency-Key` of a request.
#[derive(Clone)]
pub struct RequestKey(Vec<u8>);

impl RequestKey {
    pub(crate) fn new(key: &[u8]) -> Self {
        Self(key.to_vec())
    }

    /// The key itself. The key of a registration gives access to the token, so it is neither stored nor logged.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The SHA-256 of the key, by which the store finds the earlier request.
    pub(crate) fn hash(&self) -> [u8; 32] {
        Sha256::digest(&self.0).into()
    }
}

/// A caller that may read the data of several devices.
pub enum Reader {
    /// A device.
    Device(Caller),
    /// The operator.
    Admin,
}

/// The caller of a registration, identified by its bearer token.
#[derive(Clone, Debug)]
pub enum Bearer {
    /// A registered device.
    Device(Caller),
    /// The operator.
    Admin,
    /// The holder of an enrolment token, by its SHA-256. The registration checks the token and uses it up.
    Enrolment([u8; 32]),
    /// The holder of a code that a device made for a further device of its user, by its SHA-256. The registration checks the code
    /// and uses it up.
    Link([u8; 32]),
    /// A user that the operator's identity provider has named.
    User(UserName),
    /// The holder of an unknown token.
    Stranger,
}
