//! The directory: users' devices and their signature keys.

use std::collections::BTreeSet;

use keypool_openapi::{
    Base64Bytes, Device, DeviceList, DevicesQuery, LookupRequest, LookupResponse, PreviousSignatureKey, ProblemType,
    SignatureKey, UserName,
};

use super::{Pool, devices::unknown_user};
use crate::{
    auth::Caller,
    problem::Failure,
    store::{Listed, Listing},
};

/// An answer ends after about so many bytes; the users that are left go into `remaining`.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// Users that are looked up in one statement: all their devices are in memory together.
const AT_A_TIME: usize = 100;

/// So many users of a look-up count as one request.
const USERS_A_REQUEST: usize = 10;

/// About the bytes of a device, or of a key, in an answer, without names and key.
const FRAME: usize = 160;

impl Pool {
    /// The devices of a user.
    pub async fn devices(&self, user: UserName, query: DevicesQuery) -> Result<DeviceList, Failure> {
        let listing = self.listing(query.removed.unwrap_or(false));
        self.block(move |pool, _| {
            let found = pool.store.directory(&BTreeSet::from([user.clone()]), listing)?.users.into_iter().next();
            let (user, devices) = found.ok_or_else(|| unknown_user(&user))?;
            Ok::<_, Failure>(DeviceList { user, devices: devices.into_iter().map(device).collect() })
        })
        .await
    }

    /// The devices of many users.
    pub async fn lookup(&self, caller: Caller, request: LookupRequest) -> Result<LookupResponse, Failure> {
        let users: BTreeSet<_> = request.users.into_iter().collect();
        if users.is_empty() {
            return Err(Failure::new(ProblemType::MalformedRequest, "`users` is empty. Name 1 to 1000 users."));
        }
        self.limits.request(&caller.device.user, users.len() / USERS_A_REQUEST)?;
        let listing = self.listing(request.removed);
        self.block(move |pool, _| {
            let mut users: Vec<_> = users.into_iter().collect();
            let mut answer = LookupResponse { users: Vec::new(), unknown: Vec::new(), remaining: Vec::new() };
            let mut bytes = 0;
            while !users.is_empty() && bytes < ANSWER_BYTES {
                let some: BTreeSet<_> = users.drain(..users.len().min(AT_A_TIME)).collect();
                let found = pool.store.directory(&some, listing)?;
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
