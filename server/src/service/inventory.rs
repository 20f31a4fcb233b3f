//! Inventory: lists a device's KeyPackages.

use std::sync::Arc;

use keypool_openapi::{InventoryPage, InventoryQuery};

use super::{Service, pages::page};
use crate::{problem::Failure, store::DeviceRow};

/// Default number of items in a page.
const INVENTORY_PAGE: u32 = 500;

impl Service {
    /// Returns a page of the caller's KeyPackages.
    pub async fn inventory(&self, caller: Arc<DeviceRow>, query: InventoryQuery) -> Result<InventoryPage, Failure> {
        let limit = page(query.limit, INVENTORY_PAGE)?;
        self.block(move |service, now| {
            service.store.inventory(caller.id, query.after.as_ref(), limit, service.as_of(now))
        })
        .await
    }
}
