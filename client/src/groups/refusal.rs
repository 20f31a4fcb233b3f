//! Finds the reason that the sender of a refused message gets.

use keypool_openapi::RefusalReason;
use openmls::{
    group::{ProcessMessageError, StageCommitError, ValidationError, WelcomeError},
    prelude::{KeyPackageVerifyError, ProposalValidationError},
    treesync::errors::{LeafNodeValidationError, LifetimeError},
};

use crate::{cause::Cause, error::Error};

/// Why OpenMLS refuses a lifetime in a message by this machine's clock, if that is why it refused the message.
pub(super) fn lifetime_error(error: &Error) -> Option<&LifetimeError> {
    let Error::Mls { source, .. } = error else { return None };
    let of_leaf = match source.downcast_ref::<ProcessMessageError<rusqlite::Error>>()? {
        ProcessMessageError::ValidationError(ValidationError::KeyPackageVerifyError(
            KeyPackageVerifyError::LifetimeError(lifetime),
        )) => return Some(lifetime),
        ProcessMessageError::InvalidCommit(
            StageCommitError::LeafNodeValidation(error)
            | StageCommitError::ProposalValidationError(ProposalValidationError::LeafNodeValidation(error)),
        ) => error,
        _ => return None,
    };
    match of_leaf {
        LeafNodeValidationError::Lifetime(lifetime) => Some(lifetime),
        _ => None,
    }
}

/// Returns the reason for the sender. [`Error::with_causes`] says more, for people and the log.
pub(super) fn reason_of(error: &Error) -> RefusalReason {
    match error {
        Error::WrongIdentity { .. } => RefusalReason::NotTrusted,
        Error::Mls { source, .. } if is_unsupported(source) => RefusalReason::Unsupported,
        _ => RefusalReason::Invalid,
    }
}

/// Whether a Commit refers to a proposal that this device does not have.
pub(super) fn lacks_proposal(error: &Error) -> bool {
    let Error::Mls { source, .. } = error else { return false };
    let lacks = |error: &ProcessMessageError<rusqlite::Error>| {
        matches!(error, ProcessMessageError::InvalidCommit(StageCommitError::MissingProposal))
    };
    source.downcast_ref().is_some_and(lacks)
}

/// Whether OpenMLS refused something that RFC 9420 allows.
fn is_unsupported(cause: &Cause) -> bool {
    use ProcessMessageError as P;
    use WelcomeError as W;
    if let Some(error) = cause.downcast_ref::<W<rusqlite::Error>>() {
        return match error {
            W::UnsupportedMlsVersion
            | W::UnsupportedCapability
            | W::UnsupportedCiphersuite(_)
            | W::UnsupportedExtensions
            | W::MissingRatchetTree => true,
            W::LeafNodeValidation(error) => is_unsupported_leaf(error),
            _ => false,
        };
    }
    match cause.downcast_ref::<P<rusqlite::Error>>() {
        Some(P::IncompatibleWireFormat | P::UnsupportedProposalType) => true,
        Some(P::ValidationError(ValidationError::KeyPackageVerifyError(error))) => {
            matches!(error, KeyPackageVerifyError::UnsupportedExtension)
        }
        Some(P::InvalidCommit(error)) => match error {
            StageCommitError::ProposalValidationError(error) => matches!(
                error,
                ProposalValidationError::InsufficientCapabilities | ProposalValidationError::UnsupportedProposalType
            ),
            StageCommitError::GroupContextExtensionsProposalValidationError(_) => true,
            StageCommitError::LeafNodeValidation(error) => is_unsupported_leaf(error),
            _ => false,
        },
        _ => false,
    }
}

fn is_unsupported_leaf(error: &LeafNodeValidationError) -> bool {
    use LeafNodeValidationError as E;
    matches!(
        error,
        E::UnsupportedExtensions
            | E::UnsupportedProposals
            | E::UnsupportedCredentials
            | E::ExtensionsNotInCapabilities
            | E::LeafNodeCredentialNotSupportedByMember
            | E::MemberCredentialNotSupportedByLeafNode
    )
}
