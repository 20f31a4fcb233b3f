//! The sizes of a KeyPackage pool, and the lifetime of a KeyPackage.

use std::time::Duration;

use openmls::prelude::Ciphersuite;

use crate::error::{Error, Result};

/// The default ciphersuite: number 1 of RFC 9420, which every MLS client supports.
pub const CIPHERSUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;

/// The configuration of a device's KeyPackage pool. It applies to each ciphersuite separately.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPackagePoolConfig {
    /// The number of fresh KeyPackages in a full pool.
    pub target_pool_size: usize,
    /// A refresh fills a pool with fewer fresh KeyPackages than this up to the target.
    pub low_watermark: usize,
    /// The largest number of available KeyPackages, including those whose reservation lapsed.
    pub hard_cap: usize,
    /// The lifetime of a new KeyPackage, from its generation. Fractions of a second are ignored.
    pub lifetime: Duration,
    /// How a new last resort is marked.
    pub last_resort_form: LastResortForm,
}

/// How a last resort is marked. Servers and adders know both forms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LastResortForm {
    /// By the extension `last_resort` (RFC 9420, section 17.3), which OpenMLS knows.
    #[default]
    Extension,
    /// By a component of the extension `app_data_dictionary` (draft-ietf-mls-extensions). OpenMLS deletes the private keys of
    /// such a KeyPackage at a join. A join of this library puts them back; an application that joins by OpenMLS itself has
    /// to do so, too.
    Component,
}

impl Default for KeyPackagePoolConfig {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl KeyPackagePoolConfig {
    /// The sizes and the lifetime that suit most devices.
    pub const DEFAULT: Self = Self {
        target_pool_size: 32,
        low_watermark: 8,
        hard_cap: 64,
        lifetime: Duration::from_hours(14 * 24),
        last_resort_form: LastResortForm::Extension,
    };

    /// Checks that `1 <= low_watermark <= target_pool_size <= hard_cap`, and that the lifetime is between one hour and
    /// 84 days, OpenMLS's maximum.
    pub fn validate(&self) -> Result<()> {
        let Self { target_pool_size, low_watermark, hard_cap, lifetime, last_resort_form: _ } = self;
        let broken = if *low_watermark == 0 {
            "low_watermark is 0, so the pool would never be filled".to_owned()
        } else if low_watermark > target_pool_size {
            format!("low_watermark {low_watermark} is above target_pool_size {target_pool_size}")
        } else if target_pool_size > hard_cap {
            format!("target_pool_size {target_pool_size} is above hard_cap {hard_cap}")
        } else if !(Duration::from_hours(1)..=Duration::from_hours(84 * 24)).contains(lifetime) {
            format!("lifetime must be between 1 hour and 84 days; got {} s", lifetime.as_secs())
        } else {
            return Ok(());
        };
        Err(Error::Config(broken))
    }
}
