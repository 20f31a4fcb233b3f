//! Audit: lists the events of KeyPackages.

use keypool_openapi::{AuditPage, AuditQuery, ProblemType};

use super::{Service, devices::unknown_user, pages::page};
use crate::{caller::Reader, problem::Failure};

/// Default number of events in a page.
const PAGE: u32 = 100;

impl Service {
    /// Returns a page of the events of the caller's KeyPackages, or of a user's KeyPackages for the operator.
    pub(crate) async fn audit(&self, reader: Reader, query: AuditQuery) -> Result<AuditPage, Failure> {
        let limit = page(query.limit, PAGE)?;
        let AuditQuery { user, before, .. } = query;
        if before.is_some_and(|before| before < 1) {
            return Err(Failure::new(
                ProblemType::MalformedRequest,
                "`before` must be the `next` of the page before, which is 1 or more.",
            ));
        }
        match (reader, user) {
            (Reader::Device(caller), None) => {
                self.block(move |service, _| {
                    // Before the rows: all steps below this size are among them.
                    let log = service.log_size()?;
                    let page = service.store.audit(caller.device.id, before, limit)?;
                    Ok::<_, Failure>(AuditPage { log, ..page })
                })
                .await
            }
            (Reader::Device(_), Some(_)) => Err(Failure::new(
                ProblemType::Forbidden,
                "A device reads the audit trail of its own KeyPackages. Leave `user` out.",
            )),
            (Reader::Admin, Some(user)) => {
                self.block(move |service, _| {
                    let log = service.log_size()?;
                    let page = service.store.audit_of_user(&user, before, limit)?;
                    page.map(|page| AuditPage { log, ..page }).ok_or_else(|| unknown_user(&user))
                })
                .await
            }
            (Reader::Admin, None) => Err(Failure::new(
                ProblemType::MalformedRequest,
                "The admin token reads any user's audit trail. Name the user: `?user=NAME`.",
            )),
        }
    }
}
