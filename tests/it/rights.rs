//! A server that may not write its database, or change the schema, says what an operator has to do.

use diesel::{Connection as _, RunQueryDsl as _, SqliteConnection};
use keypool_client::LocalStore;

use crate::{
    process::{run, said},
    support::Database,
};

/// An account of its own may change the schema, as docs/operations.md describes.
#[tokio::test]
async fn a_server_needs_no_right_to_change_a_schema_that_is_up_to_date() {
    let place = Database::Postgres.fresh();
    let run_as = async |user: &str, subcommand, arguments: &'static [&str]| {
        let url = place.url.replace("postgres@", &format!("{user}@"));
        let output = run(subcommand, move |command| {
            command.args(arguments).env("KEYPOOL_DATABASE_URL", url);
        });
        output.await
    };
    assert!(run_as("postgres", "migrate", &[]).await.status.success());
    place.open().run(
        "CREATE ROLE serves LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO serves",
    );
    let output = run_as("serves", "enrol", &["--user", "alice"]).await;
    assert!(output.status.success(), "{}", said(&output));
    // Where there is something to change, it says that it may not.
    place.open().run(
        "DELETE FROM __diesel_schema_migrations WHERE version = (SELECT max(version) FROM __diesel_schema_migrations)",
    );
    let output = run_as("serves", "enrol", &["--user", "alice"]).await;
    let said_so = said(&output);
    assert!(!output.status.success() && said_so.contains("a migration failed"), "{said_so}");
    assert!(said_so.contains("GRANT USAGE, CREATE ON SCHEMA public TO serves"), "{said_so}");
}

/// Private keys and the server's data never share a file, whichever of the two programs comes first.
#[tokio::test]
async fn a_database_of_a_device_is_no_servers_and_the_reverse() {
    let directory = tempfile::tempdir().unwrap();
    let serve = |file: &str| {
        let url = format!("sqlite://{}/{file}", directory.path().display());
        run("migrate", move |command| {
            command.env("KEYPOOL_DATABASE_URL", url);
        })
    };
    drop(LocalStore::open(directory.path()).unwrap());
    let device = directory.path().join("device.db");
    let bytes = std::fs::read(&device).unwrap();
    let output = serve("device.db").await;
    assert!(output.status.code() == Some(1) && said(&output).contains("name another file"), "{}", said(&output));
    // As versions before 0.2 left it.
    let mut old = SqliteConnection::establish(&device.to_string_lossy()).unwrap();
    diesel::sql_query("PRAGMA application_id = 0").execute(&mut old).unwrap();
    drop(old);
    let output = serve("device.db").await;
    assert!(output.status.code() == Some(1) && said(&output).contains("name another file"), "{}", said(&output));
    drop(LocalStore::open(directory.path()).unwrap());
    assert_eq!(std::fs::read(&device).unwrap().len(), bytes.len());

    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/keypool.db", directory.path().display());
    let output = run("migrate", move |command| {
        command.env("KEYPOOL_DATABASE_URL", url);
    });
    assert!(output.await.status.success());
    let refused = LocalStore::open(directory.path()).unwrap_err();
    assert!(refused.to_string().contains("keypool.db is the database of another program"), "{refused}");
    assert!(!directory.path().join("device.db").exists());
}

/// The error names once what the operator has to change.
#[tokio::test]
async fn a_file_that_cannot_be_the_database_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path().display();
    // Nobody may make a file in /sys.
    for (url, why) in [
        (
            format!("sqlite://{here}/none/keypool.db"),
            format!("the directory {here}/none does not exist: make it first"),
        ),
        (format!("sqlite://{here}"), format!("name a file, such as {here}/keypool.db")),
        ("sqlite:///sys/keypool.db".to_owned(), "and to make files in /sys".to_owned()),
    ] {
        let output = run("migrate", move |command| {
            command.env("KEYPOOL_DATABASE_URL", url);
        });
        let output = output.await;
        let said_so = said(&output);
        assert!(output.status.code() == Some(1) && said_so.contains(&why), "{why}: {said_so}");
        assert_eq!(said_so.matches("(os error").count(), 1, "{said_so}");
    }
}
