//! Release: an adder returns a reservation that it does not need.

use keypool_openapi::{ReleaseRequest, ReleaseResponse};

use super::{Service, reservations::lost_reservation};
use crate::{caller::Caller, problem::Failure, store::Release};

impl Service {
    /// Releases a reservation.
    pub async fn release(&self, caller: Caller, request: ReleaseRequest) -> Result<ReleaseResponse, Failure> {
        let id = request.reservation_id;
        let release = Release { reservation: id, by: caller.shown_token() };
        self.block(move |service, now| {
            let released = service.store.release(&release, service.as_of(now))?;
            let released = released.map_err(|error| lost_reservation(error, &id))?;
            Ok::<_, Failure>(ReleaseResponse { keypackage_ref: released.keypackage_ref, state: released.state })
        })
        .await
    }
}
