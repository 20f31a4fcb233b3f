//! Receipts of reserves and spends that were committed just now: one signature for all of a batch.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use keypool_openapi::{Proof, Reservation, ReservationId, ReserveResponse};
use keypool_transparency::{
    commitment::{Event, Record},
    key_package::KeyPackageFields,
    leaf::Leaf,
    package::{self, Bind, PackageId, Step},
    receipt::{Promise, Receipt},
};

use super::core::Log;
use crate::store::{DeviceId, LogOwner, Reserve, Reserved, Spend, Spent, StoreError};

/// A hand-out that began or ended just now, of which the caller wants a receipt.
pub struct Receivable {
    /// The caller.
    pub to: DeviceId,
    leaves: Vec<Unsealed>,
}

/// A leaf before its names and secrets are known.
struct Unsealed {
    owner: i64,
    step: Step,
    event: Event,
    package: PackageId,
    at: i64,
    until: i64,
    group_id: Vec<u8>,
    reservation_id: package::ReservationId,
    bind: Bind,
}

fn reservation(id: &ReservationId) -> package::ReservationId {
    package::ReservationId::new(id.owner, *id.nonce.as_bytes())
}

impl Receivable {
    /// The receipts that a reserve asks for, one for each reservation; none if it asks for none, or if the answer was given
    /// before: then its leaves are older.
    pub(crate) fn of_reserve(request: &Reserve, reserved: &Reserved, now: Timestamp) -> Vec<Option<Self>> {
        let bind = request.bind.filter(|_| request.proof == Proof::Receipt);
        let (Reserved { answer: ReserveResponse { reservations, .. }, is_repeated: false }, Some(bind)) =
            (reserved, bind)
        else {
            return Vec::new();
        };
        let receivable = |one: &Reservation| {
            let fields = KeyPackageFields::parse(&one.keypackage.0).ok()?;
            let reservation_id = reservation(&one.reservation_id);
            let leaf = Unsealed {
                owner: one.reservation_id.owner,
                step: one.handout.map_or(Step::Use(reservation_id), Step::Open),
                event: Event::Reserve,
                package: PackageId::of(&fields),
                at: now.as_second(),
                until: one.expires_at.as_second(),
                group_id: request.group_id.clone().unwrap_or_default(),
                reservation_id,
                bind: Bind(bind),
            };
            Some(Self { to: request.by.device, leaves: vec![leaf] })
        };
        reservations.iter().map(receivable).collect()
    }

    /// The receipt that a spend asks for; `None` if it asks for none, or was a repetition.
    pub(crate) fn of_spend(request: &Spend, spent: &Spent) -> Option<Self> {
        let (logged, bind) = (spent.logged?, request.bind.filter(|_| request.proof == Proof::Receipt)?);
        let (package, reservation_id) = (logged.package?, reservation(&request.reservation));
        let leaf = |step: Step, event: Event| Unsealed {
            owner: request.reservation.owner,
            step,
            event,
            package,
            at: spent.spent_at.as_second(),
            until: 0,
            group_id: request.group_id.clone(),
            reservation_id,
            bind: Bind(bind),
        };
        let begin = spent.handout.filter(|_| logged.is_late).map(|n| leaf(Step::Open(n), Event::Reserve));
        let end = leaf(spent.handout.map_or(Step::Used(reservation_id), Step::End), Event::Spend);
        Some(Self { to: request.by.device, leaves: begin.into_iter().chain([end]).collect() })
    }

    fn promises(&self, owners: &HashMap<i64, Arc<LogOwner>>) -> Vec<Promise> {
        let to = owners.get(&self.to.0).map(|owner| owner.name.clone()).unwrap_or_default();
        let leaf = |leaf: &Unsealed| -> Option<Leaf> {
            let owner = owners.get(&leaf.owner)?;
            let record = Record {
                event: leaf.event,
                package: leaf.package,
                owner: owner.name.clone(),
                at: u64::try_from(leaf.at).ok()?,
                until: u64::try_from(leaf.until).ok()?,
                actor: to.clone(),
                group_id: leaf.group_id.clone(),
                reservation_id: leaf.reservation_id,
                bind: leaf.bind,
            };
            Some(owner.secret.seal(&leaf.step, &record).0)
        };
        self.leaves.iter().filter_map(leaf).map(Promise::Leaf).collect()
    }
}

impl Log {
    /// Signs receipts of what was committed, with one signature. Each is `None` where nothing was wanted.
    ///
    /// # Errors
    /// When the database fails, or the key is not the log's.
    pub(crate) fn receipts(
        &self,
        wanted: &[Option<Receivable>],
        now: Timestamp,
    ) -> Result<Vec<Option<String>>, StoreError> {
        let all = || wanted.iter().flatten();
        if all().next().is_none() {
            return Ok(wanted.iter().map(|_| None).collect());
        }
        let devices = all().flat_map(|one| one.leaves.iter().map(|leaf| leaf.owner).chain([one.to.0]));
        let owners = self.store.log_owners(&self.owners, devices)?;
        // A promised leaf may be beyond any tree, so an older one will do.
        let state = self.recent()?;
        let promised: Vec<_> = all().map(|one| (one.to, one.promises(&owners))).collect();
        let named = |(to, promises): (DeviceId, Vec<Promise>)| {
            (owners.get(&to.0).map(|owner| owner.name.clone()).unwrap_or_default(), promises)
        };
        let mut signed = self.sign_receipts(&state, promised.into_iter().map(named).collect(), now)?.into_iter();
        Ok(wanted.iter().map(|one| one.as_ref().and_then(|_| signed.next())).collect())
    }

    /// Signs promises to callers, by their names, with one signature. The state was read before what is promised.
    ///
    /// # Errors
    /// When the database fails, or the key is not the log's.
    pub(crate) fn sign_receipts(
        &self,
        state: &crate::store::TreeState,
        promises: Vec<(String, Vec<Promise>)>,
        now: Timestamp,
    ) -> Result<Vec<String>, StoreError> {
        let signer = self.signer(state.k)?;
        let time = u64::try_from(now.as_second()).unwrap_or_default();
        let receipt = |(to, promises)| {
            let origin = signer.verifier().name().to_owned();
            Receipt { origin, size: state.size, time, to, promises }
        };
        let receipts: Vec<_> = promises.into_iter().map(receipt).collect();
        let texts = Receipt::sign_batch(&receipts, &signer).map_err(StoreError::fatal)?;
        self.store.metrics().log().signed(texts.len());
        Ok(texts)
    }
}
