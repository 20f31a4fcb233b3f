//! Refs of KeyPackages (RFC 9420, section 5.2): computed from a KeyPackage, and converted to the type of OpenMLS.

use keypool_openapi::KeyPackageRef;
use openmls::prelude::{
    KeyPackage, OpenMlsCrypto,
    tls_codec::{DeserializeBytes as _, Serialize as _, VLByteSlice},
};

use crate::error::{Error, Result};

/// The ref of a KeyPackage (RFC 9420, section 5.2).
pub(crate) fn keypackage_ref(key_package: &KeyPackage, crypto: &impl OpenMlsCrypto) -> Result<KeyPackageRef> {
    let hash = key_package.hash_ref(crypto).map_err(|error| Error::mls("hash a KeyPackage")(error.into()))?;
    Ok(hash.as_slice().to_vec().into())
}

/// Converts a ref to OpenMLS's type, which can only be decoded.
pub(crate) fn hash_reference(keypackage_ref: &[u8]) -> Result<openmls::prelude::KeyPackageRef> {
    VLByteSlice(keypackage_ref)
        .tls_serialize_detached()
        .and_then(|bytes| openmls::prelude::KeyPackageRef::tls_deserialize_exact_bytes(&bytes))
        .map_err(|error| Error::mls("read a KeyPackageRef")(error.into()))
}
