//! Reserves KeyPackages and checks them: the server is not trusted to hand out the right ones.

use keypool_openapi::{
    DeviceOf, MissingDevice, ReleaseRequest, Reservation, ReserveRequest, ReserveResponse, UserName, device_name,
};
use openmls::prelude::{BasicCredential, KeyPackage, KeyPackageVerifyError, MlsMessageBodyIn, ProtocolVersion};
use openmls_traits::OpenMlsProvider;
use tracing::warn;

use super::{
    encoding::decode,
    membership::MlsMembership,
    unfit::{UnfitDevice, UnfitReason},
};
use crate::{
    api::ApiClient,
    cause::Cause,
    error::{Error, Result, WrongCredential},
    identity_check::{NewLeaves, Notice, Standings},
    key_package_ref::keypackage_ref,
    leaf_identity::LeafIdentity,
    log::ids_of,
};

/// Checked reservations.
pub(crate) struct Reserved {
    pub(crate) reservations: Vec<Reservation>,
    pub(crate) missing: Vec<MissingDevice>,
    /// The devices whose KeyPackages do not fit. Their reservations are released.
    pub(crate) unfit: Vec<UnfitDevice>,
    /// Notices for the user about the devices.
    pub(crate) notices: Vec<Notice>,
}

impl MlsMembership<'_> {
    /// Reserves KeyPackages, and checks that each is valid, has the requested user, device and ciphersuite, and carries
    /// the current signature key of its device. If one check fails, releases all: the server must not choose the
    /// members of a group. A KeyPackage that may be valid, and that OpenMLS cannot add, is released alone.
    pub(crate) async fn reserve(&self, request: &ReserveRequest) -> Result<Reserved> {
        let (request, asked_after) = &self.log().bound(request).await?;
        let ReserveResponse { mut reservations, missing } = self.connection.api().reserve_key_package(request).await?;
        let unfit = self.release_unread(&mut reservations).await;
        let ahead = self.connection.api().clock_ahead();
        // Where this machine's clock is so far off that nobody can be added, that is the error.
        if reservations.is_empty()
            && let (true, Some(ahead)) = (unfit.iter().any(|one| one.reason == UnfitReason::OwnClock), ahead)
        {
            return Err(Error::WrongClock { ahead });
        }
        match self.check_and_record(&reservations, (request, *asked_after)).await {
            Ok(notices) => Ok(Reserved { reservations, missing, unfit, notices }),
            Err(error) => {
                release(self.connection.api(), &reservations).await;
                Err(error)
            }
        }
    }

    async fn check_and_record(
        &self,
        reservations: &[Reservation],
        (request, asked_after): (&ReserveRequest, i64),
    ) -> Result<Vec<Notice>> {
        let notices = self.check_reservations(reservations, request).await?;
        let log = self.log();
        log.record((request, asked_after), reservations).await?;
        log.wait_for(&ids_of(reservations)).await?;
        Ok(notices)
    }

    async fn check_reservations(&self, reservations: &[Reservation], request: &ReserveRequest) -> Result<Vec<Notice>> {
        let mut leaves = Vec::new();
        for reservation in reservations {
            matches_request(reservation, request)?;
            let key_package = self.read_reserved(reservation)?;
            leaves.push(LeafIdentity {
                credential: key_package.leaf_node().credential().clone(),
                signature_key: key_package.leaf_node().signature_key().as_slice().to_vec(),
                ciphersuite: key_package.ciphersuite(),
                reserved_for: Some(device_of(reservation)),
            });
        }
        if leaves.is_empty() {
            return Ok(Vec::new());
        }
        let answers = self.check_identities(&leaves).await?;
        let mut standings = Standings::default();
        standings.extend(&leaves, answers)?;
        let now = self.now();
        self.store.transaction(|| {
            let mut notices = Vec::new();
            for (leaf, reservation) in leaves.iter().zip(reservations) {
                // Its key was current when it was reserved, which was before the reservation expires.
                let leaves = NewLeaves::of_reserved(std::slice::from_ref(leaf), leaf.ciphersuite);
                notices
                    .extend(leaves.accept(self.store, &standings, (reservation.expires_at, now)).map_err(wrong_key)?);
            }
            Ok(notices)
        })
    }

    /// Releases the reservations whose KeyPackages OpenMLS cannot read although they may be valid.
    async fn release_unread(&self, reservations: &mut Vec<Reservation>) -> Vec<UnfitDevice> {
        let (mut unfit, mut unread) = (Vec::new(), Vec::new());
        for one in std::mem::take(reservations) {
            match self.read_reserved(&one) {
                Err(error @ Error::UnfitKeyPackage { .. }) => {
                    unfit.push(UnfitDevice::of(&one, &error, self.connection.api().clock_ahead()));
                    unread.push(one);
                }
                _ => reservations.push(one),
            }
        }
        release(self.connection.api(), &unread).await;
        unfit
    }

    /// Reads a reserved KeyPackage, see [`read_key_package`]. If the application checks identities, it decides which
    /// credential belongs to the device.
    pub(super) fn read_reserved(&self, reservation: &Reservation) -> Result<KeyPackage> {
        let key_package = read_key_package(reservation, &self.store.provider())?;
        if !self.connection.has_own_check() {
            names_device(&key_package, reservation)?;
        }
        Ok(key_package)
    }
}

pub(super) fn device_of(reservation: &Reservation) -> DeviceOf {
    DeviceOf { user: reservation.user.clone(), device: reservation.device.clone() }
}

/// Releases reservations. Errors are only logged: such a reservation was spent, or lapses by itself.
pub(super) async fn release(api: &ApiClient, reservations: &[Reservation]) {
    for reservation in reservations {
        let reservation_id = reservation.reservation_id;
        if let Err(error) = api.release_key_package(&ReleaseRequest { reservation_id }).await {
            warn!(%reservation_id, %error, "could not release a reservation");
        }
    }
}

/// Checks that a reservation has the requested user, device and ciphersuite.
pub(super) fn matches_request(reservation: &Reservation, request: &ReserveRequest) -> Result<()> {
    let users: Vec<&UserName> = request.target_user.iter().chain(request.targets.iter().flatten()).collect();
    let is_device = request.device.as_ref().is_none_or(|device| *device == reservation.device);
    if !users.contains(&&reservation.user) || !is_device {
        let names: Vec<_> = users.into_iter().map(UserName::as_str).collect();
        let device = request.device.as_ref().map(|device| format!("/{device}")).unwrap_or_default();
        let found = device_name(&reservation.user, &reservation.device);
        return Err(Error::ForeignKeyPackage { device: format!("{}{device}", names.join(", ")), found });
    }
    if request.ciphersuite.is_some_and(|ciphersuite| ciphersuite != reservation.ciphersuite) {
        return Err(Error::InvalidKeyPackage {
            device: device_name(&reservation.user, &reservation.device),
            source: format!("its ciphersuite {} was not requested", reservation.ciphersuite).into(),
        });
    }
    Ok(())
}

/// Turns the refusal of a leaf into the refusal of its KeyPackage.
fn wrong_key(error: Error) -> Error {
    match error {
        Error::WrongIdentity { member, why } => Error::InvalidKeyPackage { device: member, source: why.into() },
        other => other,
    }
}

/// Reads a reserved KeyPackage, and checks that it is valid, and has the ref and ciphersuite of the reservation.
pub(super) fn read_key_package(reservation: &Reservation, provider: &impl OpenMlsProvider) -> Result<KeyPackage> {
    let device = device_name(&reservation.user, &reservation.device);
    let invalid = |source: Cause| Error::InvalidKeyPackage { device: device.clone(), source };
    let message = decode(&reservation.keypackage.0).map_err(|error| invalid(error.into()))?;
    let MlsMessageBodyIn::KeyPackage(key_package) = message.extract() else {
        return Err(invalid("this MLSMessage is no KeyPackage".into()));
    };
    let key_package = key_package.validate(provider.crypto(), ProtocolVersion::Mls10).map_err(|error| match error {
        // OpenMLS does not find a GREASE extension among the capabilities that list it, and reads this device's clock.
        KeyPackageVerifyError::UnsupportedExtension | KeyPackageVerifyError::LifetimeError(_) => {
            Error::UnfitKeyPackage { device: device.clone(), source: error.into() }
        }
        error => invalid(error.into()),
    })?;
    if keypackage_ref(&key_package, provider.crypto())? != reservation.keypackage_ref {
        return Err(invalid("its ref is not that of the reservation".into()));
    }
    if u16::from(key_package.ciphersuite()) != reservation.ciphersuite {
        return Err(invalid("its ciphersuite is not that of the reservation".into()));
    }
    Ok(key_package)
}

/// Checks that the credential of a reserved KeyPackage names the device of the reservation.
pub(super) fn names_device(key_package: &KeyPackage, reservation: &Reservation) -> Result<()> {
    let device = device_name(&reservation.user, &reservation.device);
    let credential = key_package.leaf_node().credential().clone();
    let kind = credential.credential_type();
    let credential = BasicCredential::try_from(credential)
        .map_err(|_| Error::UnfitKeyPackage { device: device.clone(), source: WrongCredential(kind).into() })?;
    if credential.identity() != device.as_bytes() {
        let found = String::from_utf8_lossy(credential.identity()).into_owned();
        return Err(Error::ForeignKeyPackage { device, found });
    }
    Ok(())
}
