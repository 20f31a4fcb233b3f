//! The migrations, which the server applies at its start.

use diesel::backend::Backend;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::error::StoreError;

pub(crate) const POSTGRES_MIGRATIONS: EmbeddedMigrations = embed_migrations!("../migrations/postgres");
pub(crate) const SQLITE_MIGRATIONS: EmbeddedMigrations = embed_migrations!("../migrations/sqlite");

pub(super) fn migrate<C: MigrationHarness<DB>, DB: Backend>(
    conn: &mut C,
    migrations: EmbeddedMigrations,
) -> Result<(), StoreError> {
    let applied = conn
        .run_pending_migrations(migrations)
        .map_err(|error| StoreError::fatal(anyhow::anyhow!("a migration failed: {error}")))?;
    for migration in applied {
        tracing::info!(%migration, "migrated the database");
    }
    Ok(())
}
