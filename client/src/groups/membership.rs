//! The type whose methods the other files of this folder add: a device and its groups.

use jiff::Timestamp;
use keypool_openapi::DeviceOf;

use crate::{connection::MlsConnection, identity::DeviceIdentity, log::ServerLog, storage::LocalStore};

/// The number of attempts to commit or to send, if other Commits keep coming first.
pub(super) const ATTEMPTS: u32 = 16;

/// A device in its groups: creates and joins groups, changes their members, and sends and receives their messages.
///
/// Calls may run at the same time, and take turns where they change groups. A call that is dropped is as one that
/// crashed: what the server has accepted stands, the next call finds out about a Commit without an answer, and
/// reservations that no Commit needs any more lapse.
#[derive(Clone, Copy, Debug)]
pub struct MlsMembership<'a> {
    pub(crate) connection: MlsConnection<'a>,
    pub(crate) store: &'a LocalStore,
    pub(crate) identity: &'a DeviceIdentity,
}

impl<'a> MlsMembership<'a> {
    /// The groups of the device with this connection and identity.
    #[must_use]
    pub fn new(connection: MlsConnection<'a>, identity: &'a DeviceIdentity) -> Self {
        Self { connection, store: connection.store(), identity }
    }

    /// The server's transparency log, as this device checks it.
    #[must_use]
    pub fn log(&self) -> ServerLog<'a> {
        self.connection.log(self.identity)
    }

    pub(super) fn own_device(&self) -> DeviceOf {
        DeviceOf { user: self.identity.user().clone(), device: self.identity.device().clone() }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.connection.now()
    }
}
