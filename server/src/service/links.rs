//! Codes by which a device lets a further device of its user in.

use jiff::SignedDuration;
use keypool_openapi::{DeviceLink, DeviceLinks, LinkState, NewDeviceLink};
use keypool_validation::token::LinkCode;

use super::Service;
use crate::{
    caller::Caller,
    problem::{Failure, unknown_token},
    store::{self, LinkRow, NewLink, StoreError, TokenRevoked},
};

/// How long a code can be used.
const LIFETIME: SignedDuration = SignedDuration::from_mins(10);

impl Service {
    /// Makes a code that registers a further device of the caller's user, once. It replaces the caller's earlier one.
    pub(crate) async fn make_link(&self, caller: Caller) -> Result<NewDeviceLink, Failure> {
        self.block(move |service, now| {
            let code = LinkCode::generate()?;
            let expires_at = now.checked_add(LIFETIME).map_err(StoreError::fatal)?;
            let (by, user) = (caller.shown_token(), caller.device.user.clone());
            match service.store.put_link(&NewLink { by, user, code_hash: code.hash(), expires_at }) {
                Ok(()) => Ok(NewDeviceLink { code: code.reveal(), expires_at }),
                Err(store::Failure::Refused(TokenRevoked)) => Err(unknown_token()),
                Err(store::Failure::Store(error)) => Err(error.into()),
            }
        })
        .await
    }

    /// The codes of the caller's user.
    pub(crate) async fn links(&self, caller: Caller) -> Result<DeviceLinks, Failure> {
        self.block(move |service, now| {
            let link = |row: LinkRow| {
                let state = match &row.used_by {
                    Some(_) => LinkState::Used,
                    None if row.is_valid && row.expires_at > now => LinkState::Open,
                    None => LinkState::Over,
                };
                let made_by = row.made_by.parse().map_err(StoreError::fatal)?;
                let device = row.used_by.map(|name| name.parse().map_err(StoreError::fatal)).transpose()?;
                Ok::<_, StoreError>(DeviceLink { made_by, state, device, expires_at: row.expires_at })
            };
            let rows = service.store.links(&caller.device.user)?;
            Ok::<_, Failure>(DeviceLinks { links: rows.into_iter().map(link).collect::<Result<_, _>>()? })
        })
        .await
    }
}
