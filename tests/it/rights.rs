//! A server that may not write its database, or change the schema, says what an operator has to do.

use crate::{
    process::{run, said},
    support::Database,
};

/// What changes the schema may be done by an account of its own, as docs/operations.md has it.
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

/// What an operator has to change stands in the error, once.
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
