//! The schema goes up, down and up again, and is the same set of steps on both databases.

use std::{collections::BTreeSet, fs, path::PathBuf};

use diesel::{
    Connection, PgConnection, QueryableByName, RunQueryDsl, SqliteConnection, backend::Backend, sql_types::BigInt,
};
use diesel_migrations::{FileBasedMigrations, MigrationHarness};
use rstest::rstest;

use crate::support::Database;

fn steps(folder: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../migrations").join(folder)
}

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    n: i64,
}

const TABLES_OF_POSTGRES: &str =
    "SELECT count(*) AS n FROM pg_tables WHERE schemaname = 'public' AND tablename NOT LIKE '%diesel%'";
const TABLES_OF_SQLITE: &str = "SELECT count(*) AS n FROM sqlite_master WHERE type = 'table' \
                                AND name NOT LIKE '%diesel%' AND name NOT LIKE 'sqlite%'";

fn up_down_up<DB: Backend, C: MigrationHarness<DB>>(conn: &mut C, folder: &str, tables: impl Fn(&mut C) -> i64) {
    let all = || FileBasedMigrations::from_path(steps(folder)).unwrap();
    conn.run_pending_migrations(all()).unwrap();
    let up = tables(conn);
    assert!(up > 0);
    conn.revert_all_migrations(all()).unwrap();
    assert_eq!(tables(conn), 0, "a table outlived its migration");
    conn.run_pending_migrations(all()).unwrap();
    assert_eq!(tables(conn), up);
}

#[rstest]
fn migrations_go_down_and_up_again(#[values(Database::Postgres, Database::Sqlite)] db: Database) {
    let place = db.fresh();
    match db {
        Database::Postgres => {
            let mut conn = PgConnection::establish(&place.url).unwrap();
            up_down_up(&mut conn, "postgres", |conn| {
                diesel::sql_query(TABLES_OF_POSTGRES).get_result::<Count>(conn).unwrap().n
            });
        }
        Database::Sqlite => {
            let mut conn = SqliteConnection::establish(place.url.trim_start_matches("sqlite://")).unwrap();
            up_down_up(&mut conn, "sqlite", |conn| {
                diesel::sql_query(TABLES_OF_SQLITE).get_result::<Count>(conn).unwrap().n
            });
        }
    }
}

#[test]
fn both_databases_have_the_same_steps() {
    let names = |folder| -> BTreeSet<_> {
        fs::read_dir(steps(folder)).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    assert_eq!(names("postgres"), names("sqlite"));
}
