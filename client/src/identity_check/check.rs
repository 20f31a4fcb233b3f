//! The interface of an identity check: its question and its answers.

use std::pin::Pin;

use jiff::Timestamp;

use crate::{error::Result, leaf_identity::LeafIdentity};

/// The answer of an identity check about one leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// The key is the device's current signature key.
    Current {
        /// The start of its use, if known.
        since: Option<Timestamp>,
    },
    /// The key was the device's signature key until the device changed it. Members that were added before may still use
    /// it.
    Previous {
        /// The time of the change.
        until: Timestamp,
    },
    /// The key was the device's signature key, and the device was removed from the directory.
    Removed {
        /// When it was removed.
        at: Timestamp,
    },
    /// The directory keeps no signature keys, so the leaf cannot be checked. It is accepted.
    Unverified,
    /// The key never was a signature key of the device. The leaf is refused.
    Unknown {
        /// The reason, as the end of a sentence about the leaf.
        why: String,
    },
}

/// The answer of an [`IdentityCheck`]: a [`Standing`] for each leaf, in their order.
pub type Checking<'a> = Pin<Box<dyn Future<Output = Result<Vec<Standing>>> + Send + 'a>>;

/// Checks that leaves belong to the devices that they name. The client asks about every leaf that is added to a group
/// or changes its key, and about leaves in a Welcome whose key it has not accepted before.
///
/// The default is the directory of the Keypool server. An application with X.509 credentials or its own directory
/// passes its own check to [`crate::MlsClient::with_identity_check`].
pub trait IdentityCheck: Send + Sync {
    /// Checks these leaves. An error means that there is no answer at the moment: the message that carries the leaves
    /// is neither accepted nor refused, and stays in the queue.
    fn check<'a>(&'a self, leaves: &'a [LeafIdentity]) -> Checking<'a>;
}

impl<C: IdentityCheck + ?Sized> IdentityCheck for &C {
    fn check<'a>(&'a self, leaves: &'a [LeafIdentity]) -> Checking<'a> {
        (**self).check(leaves)
    }
}
