//! Names of packages and of the steps of their lives: P, reservation ids and tags.

use crate::{
    encoding::{Hash, base64_text, sha256},
    key_package::KeyPackageFields,
};

/// Names a package by all that its owner has signed: the `P` of the documentation.
///
/// It does not name the signature, since anybody can turn an ECDSA signature (r, s) into (r, -s), which gives one content two
/// valid refs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackageId(pub Hash);

/// Names a hand-out: the reservation's number and random part, 24 bytes that only the server reads.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ReservationId(pub [u8; 24]);

/// Random bytes that an adder draws for each reservation, and keeps before it sends them. The server logs them, so two
/// adders cannot be shown one leaf for their reservations.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Bind(pub [u8; 32]);

/// Names one step of one package. No tag occurs twice in a log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub Hash);

base64_text!(PackageId, 32, "package id");
base64_text!(ReservationId, 24, "reservation id");
base64_text!(Bind, 32, "bind");
base64_text!(Tag, 32, "tag");

impl PackageId {
    /// The name of a parsed KeyPackage.
    #[must_use]
    pub fn of(fields: &KeyPackageFields) -> Self {
        Self(fields.signed)
    }
}

impl ReservationId {
    /// From the server's number of the device whose package is reserved, and the random part.
    #[must_use]
    pub fn new(owner: i64, nonce: [u8; 16]) -> Self {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&owner.to_be_bytes());
        bytes[8..].copy_from_slice(&nonce);
        Self(bytes)
    }
}

/// A step in the life of a package that has a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// Hand-out n begins; the first is 0.
    Open(u32),
    /// Hand-out n is over, or the owner revokes the package that would have been handed out as n.
    End(u32),
    /// A last resort is handed out.
    Use(ReservationId),
    /// An adder has spent a last resort.
    Used(ReservationId),
}

impl Step {
    /// The tag of this step of a package.
    #[must_use]
    pub fn tag(&self, package: &PackageId) -> Tag {
        let with = |label: &[u8], step: &[u8]| Tag(sha256(&[label, &package.0, step]));
        match self {
            Self::Open(n) => with(b"keypool/v1 open\0", &n.to_be_bytes()),
            Self::End(n) => with(b"keypool/v1 end\0", &n.to_be_bytes()),
            Self::Use(reservation) => with(b"keypool/v1 use\0", &reservation.0),
            Self::Used(reservation) => with(b"keypool/v1 used\0", &reservation.0),
        }
    }

    /// The number of the hand-out; 0 for a last resort.
    #[must_use]
    pub fn n(&self) -> u32 {
        match self {
            Self::Open(n) | Self::End(n) => *n,
            Self::Use(_) | Self::Used(_) => 0,
        }
    }
}
