//! Reserved KeyPackages: the server hands them out, and is not trusted to hand out the right ones.

use keypool_openapi::{Reservation, ReserveRequest, ReserveResponse, UserName};
use openmls::prelude::{BasicCredential, KeyPackage, MlsMessageBodyIn, ProtocolVersion};
use openmls_traits::OpenMlsProvider;

use super::{Answers, Claims, LeafIdentity};
use crate::{
    error::{Cause, Error, Result},
    mls::{
        MlsMembership, Notice,
        identity::identity,
        keypackage_pool,
        membership::{decode, release},
    },
};

impl MlsMembership<'_> {
    /// Reserves KeyPackages, and checks each: that it is of the user and the device that were asked for, in the ciphersuite
    /// that was asked for, that it is valid, and that it carries the current signature key of its device. If one is not,
    /// all are given back: the server does not choose who comes into a group.
    ///
    /// Answers what people should know of the devices, too.
    pub(crate) async fn reserve(&self, request: &ReserveRequest) -> Result<(ReserveResponse, Vec<Notice>)> {
        let answer = self.connection.api().reserve_key_package(request).await?;
        match self.check_reservations(&answer.reservations, request).await {
            Ok(notices) => Ok((answer, notices)),
            Err(error) => {
                release(self.connection.api(), &answer.reservations).await;
                Err(error)
            }
        }
    }

    async fn check_reservations(&self, reservations: &[Reservation], request: &ReserveRequest) -> Result<Vec<Notice>> {
        let provider = self.store.provider();
        let mut leaves = Vec::new();
        for reservation in reservations {
            is_asked_for(reservation, request)?;
            let key_package = read_key_package(reservation, &provider)?;
            leaves.push(LeafIdentity {
                credential: key_package.leaf_node().credential().clone(),
                signature_key: key_package.leaf_node().signature_key().as_slice().to_vec(),
                ciphersuite: key_package.ciphersuite(),
            });
        }
        if leaves.is_empty() {
            return Ok(Vec::new());
        }
        let standings = self.check_identities(&leaves).await?;
        let mut answers = Answers::default();
        answers.extend(&leaves, standings)?;
        let now = self.clock();
        self.store.transaction(|| {
            let mut notices = Vec::new();
            for (leaf, reservation) in leaves.iter().zip(reservations) {
                // It was reserved before it expires, and its key was current then.
                let claims = Claims::of_reserved(std::slice::from_ref(leaf), leaf.ciphersuite);
                notices.extend(claims.accept(self.store, &answers, (reservation.expires_at, now)).map_err(wrong_key)?);
            }
            Ok(notices)
        })
    }
}

/// Whether a reservation is of somebody who was asked for.
pub(in crate::mls) fn is_asked_for(reservation: &Reservation, request: &ReserveRequest) -> Result<()> {
    let users: Vec<&UserName> = request.target_user.iter().chain(request.targets.iter().flatten()).collect();
    let is_device = request.device.as_ref().is_none_or(|device| *device == reservation.device);
    if !users.contains(&&reservation.user) || !is_device {
        let names: Vec<_> = users.into_iter().map(UserName::as_str).collect();
        let device = request.device.as_ref().map(|device| format!("/{device}")).unwrap_or_default();
        let found = identity(&reservation.user, &reservation.device);
        return Err(Error::ForeignKeyPackage { device: format!("{}{device}", names.join(", ")), found });
    }
    if request.ciphersuite.is_some_and(|ciphersuite| ciphersuite != reservation.ciphersuite) {
        return Err(Error::InvalidKeyPackage {
            device: identity(&reservation.user, &reservation.device),
            source: format!("it is of ciphersuite {}, which was not asked for", reservation.ciphersuite).into(),
        });
    }
    Ok(())
}

/// The error for a KeyPackage whose leaf may not enter a group.
fn wrong_key(error: Error) -> Error {
    match error {
        Error::WrongIdentity { member, why } => Error::InvalidKeyPackage { device: member, source: why.into() },
        other => other,
    }
}

/// Reads a reserved KeyPackage, and checks all that can be checked without a directory: that it is valid, that it is the
/// one of the reservation, and that its credential is of the device that the reservation names.
pub(in crate::mls) fn read_key_package(
    reservation: &Reservation,
    provider: &impl OpenMlsProvider,
) -> Result<KeyPackage> {
    let device = identity(&reservation.user, &reservation.device);
    let invalid = |source: Cause| Error::InvalidKeyPackage { device: device.clone(), source };
    let message = decode(&reservation.keypackage.0).map_err(|error| invalid(error.into()))?;
    let MlsMessageBodyIn::KeyPackage(key_package) = message.extract() else {
        return Err(invalid("this MLSMessage is no KeyPackage".into()));
    };
    let key_package =
        key_package.validate(provider.crypto(), ProtocolVersion::Mls10).map_err(|error| invalid(error.into()))?;
    if keypackage_pool::keypackage_ref(&key_package, provider.crypto())? != reservation.keypackage_ref {
        return Err(invalid("its ref is not that of the reservation".into()));
    }
    if u16::from(key_package.ciphersuite()) != reservation.ciphersuite {
        return Err(invalid("its ciphersuite is not that of the reservation".into()));
    }
    let credential = BasicCredential::try_from(key_package.leaf_node().credential().clone())
        .map_err(|error| invalid(error.into()))?;
    if credential.identity() != device.as_bytes() {
        let found = String::from_utf8_lossy(credential.identity()).into_owned();
        return Err(Error::ForeignKeyPackage { device, found });
    }
    Ok(key_package)
}
