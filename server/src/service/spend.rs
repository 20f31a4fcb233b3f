//! Spend: an adder marks reserved KeyPackages as used.

use keypool_openapi::{SpendRequest, SpendResponse};

use super::{
    Service,
    reservations::{bind, group_id, lost_reservation},
};
use crate::{caller::Caller, problem::Failure, store::Spend};

impl Service {
    /// Spends a reservation.
    pub async fn spend(&self, caller: Caller, request: SpendRequest) -> Result<SpendResponse, Failure> {
        let (id, group) = (request.reservation_id, group_id(request.group_id)?);
        let user = caller.device.user.clone();
        let (bind, proof) = (bind(request.bind, request.proof)?, request.proof);
        let request = Spend { reservation: id, by: caller.shown_token(), group_id: group, bind, proof };
        let (spent, receipt) = self.batches.spend.run(request).await?.map_err(|error| lost_reservation(error, &id))?;
        self.limits.spent(&user, 1);
        Ok(SpendResponse {
            keypackage_ref: spent.keypackage_ref,
            state: spent.state,
            spent_at: spent.spent_at,
            handout: spent.handout,
            receipt,
        })
    }
}
