//! The inventory of a pool.

use actix_web::{get, web};
use keypool_openapi::{InventoryPage, InventoryQuery};

use crate::{auth::Params, caller::Caller, problem::Failure, service::Service};

/// List the KeyPackages that the server knows of the caller's own pool.
///
/// A client reads this list to reconcile when its own digest differs from `inventory_digest` of the status.
#[utoipa::path(
    tag = "keypackages",
    params(InventoryQuery),
    responses((status = 200, description = "A page, sorted by refs", body = InventoryPage))
)]
#[get("/keypackages/inventory")]
pub(crate) async fn list_inventory(
    service: web::Data<Service>,
    caller: Caller,
    query: Params<InventoryQuery>,
) -> Result<web::Json<InventoryPage>, Failure> {
    Ok(web::Json(service.inventory(caller.device, query.0).await?))
}
