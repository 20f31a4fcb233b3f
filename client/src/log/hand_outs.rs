//! The hand-outs to this device: what it sends with a reserve and a spend, and keeps until the log shows them.

use jiff::{SignedDuration, Timestamp};
use keypool_openapi::{
    Base64Bytes, Proof, Reservation, ReservationId, ReserveRequest, SpendReceipt, SpendRequest, SpendResponse,
    device_name,
};
use keypool_transparency::{
    adder::{self, EarlierHandOut, HandOut, Spend},
    contradiction::Dossier,
    key_package::KeyPackageFields,
    package::{self, Bind, PackageId},
    receipt::Receipt,
    verdict::Problem,
    verification::CLOCK_TOLERANCE,
};
use openmls_traits::{OpenMlsProvider as _, random::OpenMlsRand as _};
use tracing::warn;

use super::{Known, ServerLog};
use crate::{
    clock::{Clock as _, SystemClock},
    error::{Error, Result},
    finding::LogError,
    storage::{CheckState, HandOutRow},
};

/// For how long after the end of a KeyPackage's life its hand-outs are kept: others may bring what they hold.
const KEPT_AFTER: SignedDuration = SignedDuration::from_hours(30 * 24);

impl ServerLog<'_> {
    /// The request with what binds the server to its answer, if the server has a log; with the number of the last hand-out.
    pub(crate) async fn bound(&self, request: &ReserveRequest) -> Result<(ReserveRequest, i64)> {
        let asked_after = self.store.last_hand_out()?;
        if self.store.logs()?.is_empty() {
            if !self.is_strict {
                return Ok((request.clone(), asked_after));
            }
            self.learn().await?;
        }
        let bind: [u8; 32] = self
            .store
            .provider()
            .rand()
            .random_array()
            .map_err(|error| Error::mls("draw random bytes")(error.into()))?;
        let (bind, proof) = (Some(Base64Bytes(bind.to_vec())), Proof::Receipt);
        Ok((ReserveRequest { bind, proof, ..request.clone() }, asked_after))
    }

    /// Keeps what the server has handed out, and checks what can be checked without the log. To be called before any of the
    /// KeyPackages is used.
    pub(crate) async fn record(
        &self,
        (request, asked_after): (&ReserveRequest, i64),
        reservations: &[Reservation],
    ) -> Result<()> {
        let Some(bind) = request.bind.as_ref().and_then(|bind| bind.0.as_slice().try_into().ok()) else {
            return Ok(());
        };
        let mut known = self.known()?;
        for receipt in reservations.iter().filter_map(|one| one.receipt.as_ref()) {
            self.check_receipt(receipt, &mut known).await?;
        }
        let group_id = request.group_id.clone().unwrap_or_default().0;
        let mut rows = Vec::new();
        for reservation in reservations {
            let device = device_name(&reservation.user, &reservation.device);
            if reservation.handout.is_none() && !reservation.last_resort {
                // A server of an older version does not number hand-outs, and its log does not have them.
                if self.is_strict {
                    return Err(LogError::Unlogged(device).into());
                }
                continue;
            }
            let own = (self.own.as_str(), Bind(bind), group_id.as_slice());
            rows.push(self.checked_row((reservation, asked_after), own)?);
        }
        self.store.transaction(|| rows.iter().try_for_each(|row| self.store.put_hand_out(row)))
    }

    /// The row of a reservation, if the KeyPackage may have been handed out to this device.
    fn checked_row(
        &self,
        (reservation, asked_after): (&Reservation, i64),
        (actor, bind, group_id): (&str, Bind, &[u8]),
    ) -> Result<HandOutRow> {
        let device = device_name(&reservation.user, &reservation.device);
        let fields = KeyPackageFields::parse(&reservation.keypackage.0)
            .map_err(|error| Error::InvalidKeyPackage { device: device.clone(), source: error.into() })?;
        let package = PackageId::of(&fields);
        let hand_out = HandOut {
            n: reservation.handout,
            owner: device.clone(),
            actor: actor.to_owned(),
            group_id: group_id.to_vec(),
            spent_for: Vec::new(),
            reservation_id: id_in_log(&reservation.reservation_id),
            bind,
            until: u64::try_from(reservation.expires_at.as_second()).ok(),
            spend: Spend::Not,
            receipts: reservation.receipt.clone().into_iter().collect(),
        };
        let earlier = self.earlier(&package, asked_after)?;
        match adder::check_package(&hand_out, &fields, &earlier) {
            Ok(()) => {}
            Err(problem @ Problem::LivesTooLong) => {
                return Err(Error::UnfitKeyPackage { device, source: problem.into() });
            }
            Err(problem) => return Err(self.refuse(&problem, &hand_out, &package, &earlier)?),
        }
        let end = Timestamp::from_second(fields.not_after.cast_signed()).unwrap_or(Timestamp::MAX);
        Ok(HandOutRow {
            reservation_id: reservation.reservation_id,
            package,
            key_package: reservation.keypackage.0.clone(),
            hand_out,
            state: CheckState::Due,
            asked_after,
            keep_until: end.saturating_add(KEPT_AFTER).unwrap_or(Timestamp::MAX),
        })
    }

    fn refuse(
        &self,
        problem: &Problem,
        hand_out: &HandOut,
        package: &PackageId,
        earlier: &[EarlierHandOut],
    ) -> Result<Error> {
        let known = self.known()?;
        let receipts = earlier.iter().map(|earlier| &earlier.hand_out).chain([hand_out]);
        let receipts = receipts.flat_map(|hand_out| hand_out.receipts.clone()).collect();
        let dossier = Dossier { receipts, key_notes: known.key_notes(), ..Dossier::default() };
        let evidence = dossier.evidence(package, &known.policy()?);
        Ok(self.raise(problem.to_string(), evidence, &known, || format!("{problem}\n{hand_out:#?}\n{earlier:#?}\n")))
    }

    /// The hand-outs of a KeyPackage to this device that it knew of when it asked for another one. Answers to calls at the same
    /// time come in any order. Whether a reservation still holds is the server's to say: its end is in the log.
    pub(super) fn earlier(&self, package: &PackageId, asked_after: i64) -> Result<Vec<EarlierHandOut>> {
        let rows = self.store.hand_outs_of(package, asked_after)?.into_iter();
        Ok(rows.map(|row| EarlierHandOut { hand_out: row.hand_out, held: false }).collect())
    }

    /// Checks that a receipt is signed by the server's log, and is to this device.
    async fn check_receipt(&self, signed: &str, known: &mut Known) -> Result<()> {
        let unreadable = |why: String| self.api.unexpected(format!("a receipt that proves nothing: {why}"));
        let receipt = Receipt::unverified(signed).map_err(|error| unreadable(error.to_string()))?;
        if known.keys.get(&receipt.origin).is_none() {
            *known = self.learn().await?;
        }
        let receipt = known.keys.receipt(signed).map_err(|error| unreadable(error.to_string()))?;
        if receipt.to == self.own { Ok(()) } else { Err(unreadable(format!("it is to {}", receipt.to))) }
    }

    /// The request that spends a reservation, with what binds the server to its answer.
    pub(crate) fn spend_request(&self, id: ReservationId, group_id: Vec<u8>) -> Result<SpendRequest> {
        let request = SpendRequest::new(id, Base64Bytes(group_id));
        let Some(row) = self.store.hand_out(&id)? else { return Ok(request) };
        let bind = Some(Base64Bytes(row.hand_out.bind.0.to_vec()));
        Ok(SpendRequest { bind, proof: Proof::Receipt, ..request })
    }

    /// Records that the server has acknowledged a spend.
    pub(crate) async fn record_spend(&self, request: &SpendRequest, answer: &SpendResponse) -> Result<()> {
        let Some(row) = self.store.hand_out(&request.reservation_id)? else { return Ok(()) };
        if let Some(receipt) = &answer.receipt {
            self.check_receipt(receipt, &mut self.known()?).await?;
        }
        let mut hand_out = acknowledged(row.hand_out, &request.group_id.0);
        if answer.handout.is_some() && answer.handout != hand_out.n {
            // A late spend is one more hand-out.
            (hand_out.n, hand_out.until) = (answer.handout, None);
        }
        hand_out.receipts.extend(answer.receipt.clone());
        self.store.put_hand_out(&HandOutRow { hand_out, state: CheckState::Due, ..row })
    }

    /// What binds the server to the spends of a Commit: the random bytes of each reservation, in their order. None if this
    /// device does not have those of all.
    pub(crate) fn binds(&self, ids: &[ReservationId]) -> Result<Vec<Base64Bytes>> {
        let mut binds = Vec::with_capacity(ids.len());
        for id in ids {
            let Some(row) = self.store.hand_out(id)? else { return Ok(Vec::new()) };
            binds.push(Base64Bytes(row.hand_out.bind.0.to_vec()));
        }
        Ok(binds)
    }

    /// The receipts of a Commit that the server's log has signed, to this device. Others are left out: the Commit is accepted,
    /// whatever they are.
    pub(crate) async fn believed(&self, receipts: Vec<SpendReceipt>) -> Result<Vec<SpendReceipt>> {
        let mut believed = Vec::with_capacity(receipts.len());
        let mut known = self.known()?;
        for one in receipts {
            match self.check_receipt(&one.receipt, &mut known).await {
                Ok(()) => believed.push(one),
                Err(error) => warn!(id = %one.reservation_id, %error, "the receipt of a spend proves nothing"),
            }
        }
        Ok(believed)
    }

    /// Records that the server has accepted a Commit with these reservations, in the caller's transaction.
    pub(crate) fn record_commit(
        &self,
        ids: &[ReservationId],
        receipts: &[SpendReceipt],
        group_id: &[u8],
    ) -> Result<()> {
        for id in ids {
            let Some(row) = self.store.hand_out(id)? else { continue };
            let mut hand_out = acknowledged(row.hand_out, group_id);
            let its = receipts.iter().filter(|one| one.reservation_id == *id);
            hand_out.receipts.extend(its.map(|one| one.receipt.clone()));
            self.store.put_hand_out(&HandOutRow { hand_out, state: CheckState::Due, ..row })?;
        }
        Ok(())
    }

    /// Records that the server refused a spend because the reservation had ended.
    pub(crate) fn record_lapse(&self, id: &ReservationId) -> Result<()> {
        let Some(row) = self.store.hand_out(id)? else { return Ok(()) };
        let is_early = row.hand_out.until.is_some_and(|until| self.is_surely_before(until));
        let spend = if is_early && row.hand_out.n.is_some() { Spend::RefusedEarly } else { Spend::Not };
        let hand_out = HandOut { spend, ..row.hand_out };
        self.store.put_hand_out(&HandOutRow { hand_out, state: CheckState::Due, ..row })
    }

    /// Whether a time is not reached yet, by this machine's clock and by the server's.
    fn is_surely_before(&self, until: u64) -> bool {
        let is_before =
            |now: Timestamp| now.as_second().saturating_add(CLOCK_TOLERANCE.cast_signed()) < until.cast_signed();
        let server = self.api.clock_ahead().and_then(|ahead| SystemClock.now().checked_sub(ahead).ok());
        is_before(self.now()) && server.is_none_or(is_before)
    }
}

/// A reservation's id in the log.
pub(super) fn id_in_log(id: &ReservationId) -> package::ReservationId {
    package::ReservationId::new(id.owner, *id.nonce.as_bytes())
}

fn acknowledged(hand_out: HandOut, group_id: &[u8]) -> HandOut {
    let spent_for = if hand_out.group_id == group_id { Vec::new() } else { group_id.to_vec() };
    HandOut { spent_for, spend: Spend::Acknowledged, ..hand_out }
}
