//! Measures whether more KeyPackages, more users or a long history make Keypool slower.

mod cycles;
mod plan;
mod sizes;

use anyhow::Result;
use serde::Serialize;

use cycles::Past;
pub(crate) use plan::Plan;
use sizes::Size;

/// The findings.
#[derive(Debug, Serialize)]
pub(crate) struct Findings {
    /// The sizes by KeyPackages, smallest first.
    by_packages: Vec<Size>,
    /// The sizes by users, smallest first.
    by_users: Vec<Size>,
    /// Before and after the cycles.
    past: Past,
}

pub(crate) async fn measure(plan: Plan) -> Result<Findings> {
    Ok(Findings {
        by_packages: sizes::measure(plan, &sizes::by_packages(plan)).await?,
        by_users: sizes::measure(plan, &sizes::by_users(plan)).await?,
        past: cycles::measure(plan).await?,
    })
}

pub(crate) fn text(findings: &Findings) -> String {
    let Findings { by_packages, by_users, past } = findings;
    let sizes = sizes::table([by_packages.as_slice(), by_users.as_slice()].into_iter().flatten());
    format!("{sizes}\n{}", past.text())
}
