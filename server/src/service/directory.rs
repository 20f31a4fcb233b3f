//! The directory: lists users' devices and their signature keys.

use std::collections::BTreeSet;

use keypool_openapi::{
    Base64Bytes, Device, DeviceList, DevicesQuery, LookupRequest, LookupResponse, PreviousSignatureKey, ProblemType,
    SignatureKey, UserName,
};

use super::{Service, devices::unknown_user};
use crate::{
    caller::Caller,
    problem::Failure,
    store::{Listed, Listing},
};

/// Approximate limit of an answer, in bytes. The remaining users are listed in `remaining`.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// The number of users in one query. All their devices are in memory at the same time.
const AT_A_TIME: usize = 100;

/// This many users of a look-up count as one request.
const USERS_A_REQUEST: usize = 10;

/// Approximate size of a device or key in an answer, in bytes, without the names and the key itself.
const FRAME: usize = 160;

impl Service {
    /// Lists the devices of a user.
    pub async fn devices(&self, user: UserName, query: DevicesQuery) -> Result<DeviceList, Failure> {
        let listing = self.listing(query.removed.unwrap_or(false));
        self.block(move |service, _| {
            let found = service.store.directory(&BTreeSet::from([user.clone()]), listing)?.users.into_iter().next();
            let (user, devices) = found.ok_or_else(|| unknown_user(&user))?;
            Ok::<_, Failure>(DeviceList { user, devices: devices.into_iter().map(device).collect() })
        })
        .await
    }

    /// Lists the devices of many users.
    pub async fn lookup(&self, caller: Caller, request: LookupRequest) -> Result<LookupResponse, Failure> {
        let users: BTreeSet<_> = request.users.into_iter().collect();
        if users.is_empty() {
            return Err(Failure::new(ProblemType::MalformedRequest, "`users` is empty. Name 1 to 1000 users."));
        }
        self.limits.request(&caller.device.user, users.len() / USERS_A_REQUEST)?;
        let listing = self.listing(request.removed);
        self.block(move |service, _| {
            let mut users: Vec<_> = users.into_iter().collect();
            let mut answer = LookupResponse { users: Vec::new(), unknown: Vec::new(), remaining: Vec::new() };
            let mut bytes = 0;
            while !users.is_empty() && bytes < ANSWER_BYTES {
                let some: BTreeSet<_> = users.drain(..users.len().min(AT_A_TIME)).collect();
                let found = service.store.directory(&some, listing)?;
                answer.unknown.extend(found.unknown);
                for (user, devices) in found.users {
                    if bytes >= ANSWER_BYTES {
                        answer.remaining.push(user);
                        continue;
                    }
                    bytes += devices.iter().map(size).sum::<usize>();
                    answer.users.push(DeviceList { user, devices: devices.into_iter().map(device).collect() });
                }
            }
            answer.remaining.extend(users);
            Ok::<_, Failure>(answer)
        })
        .await
    }

    fn listing(&self, removed: bool) -> Listing {
        Listing { removed, keys: self.policy.binds_keys }
    }
}

fn size(listed: &Listed) -> usize {
    let keys = listed.keys.iter().map(|key| FRAME + key.signature_key.len() * 4 / 3);
    FRAME + listed.device.device.as_str().len() + keys.sum::<usize>()
}

fn device(listed: Listed) -> Device {
    let (device, registered_at, removed_at) =
        (listed.device.device.clone(), listed.device.registered_at, listed.removed_at);
    let (current, previous) = listed.split();
    let current = current.into_iter().map(|key| SignatureKey {
        ciphersuite: key.ciphersuite,
        signature_key: Base64Bytes(key.signature_key),
        since: key.since,
    });
    let previous = previous.into_iter().map(|(key, until)| PreviousSignatureKey {
        ciphersuite: key.ciphersuite,
        signature_key: Base64Bytes(key.signature_key),
        since: key.since,
        until,
    });
    Device {
        device,
        registered_at,
        removed_at,
        signature_keys: current.collect(),
        previous_signature_keys: previous.collect(),
    }
}
