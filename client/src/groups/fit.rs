//! Finds the reserved KeyPackages that OpenMLS cannot add to a group.

use keypool_openapi::Reservation;

use super::{membership::MlsMembership, reserve::release, unfit::UnfitDevice};
use crate::error::{Error, Result};

impl MlsMembership<'_> {
    /// Releases the reservations whose KeyPackages OpenMLS cannot add to the group, or not together with those before
    /// them. Afterwards, `held` lists the others.
    pub(super) async fn release_unfit(&self, group_id: &[u8], held: &mut Vec<Reservation>) -> Result<Vec<UnfitDevice>> {
        let (mut unfit, mut released) = (Vec::new(), Vec::new());
        for one in std::mem::take(held) {
            held.push(one);
            match self.check_fit(group_id, held) {
                Ok(()) => {}
                Err(error @ Error::Mls { .. }) => {
                    let Some(one) = held.pop() else { break };
                    unfit.push(UnfitDevice::of(&one, &error, self.connection.api().clock_ahead()));
                    released.push(one);
                }
                Err(error) => return Err(error),
            }
        }
        release(self.connection.api(), &released).await;
        Ok(unfit)
    }

    /// Whether OpenMLS can add these KeyPackages to the group. Changes nothing.
    fn check_fit(&self, group_id: &[u8], held: &[Reservation]) -> Result<()> {
        let provider = self.store.provider();
        let key_packages = held.iter().map(|one| self.read_reserved(one)).collect::<Result<Vec<_>>>()?;
        self.store.dry_run(|| {
            let mut group = self.load_group(group_id)?;
            let signer = self.identity.signer_in(self.store, &group)?;
            group
                .add_members(&provider, &signer, &key_packages)
                .map(drop)
                .map_err(|error| Error::mls("add the device to the group")(error.into()))
        })
    }
}
