//! A new version starts beside the old one, which goes on: the schema is expanded first, and contracted a version later.
//!
//! Tests go by their names: this one comes early, so that what it builds, mostly on one core, is built beside other tests.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::support::{Database, Device, Http, Place, ServerProcess, built, output, repository, target};

/// The name of its program.
const PREVIOUS: &str = "keypool-server-previous";

/// The server as it was before the newest migration, built out of the repository's history.
fn previous() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build)
}

fn build() -> PathBuf {
    let history = |args: &[&str]| output(Command::new("git").args(args).current_dir(repository()));
    let newest = history(&["log", "-1", "--format=%H", "--diff-filter=A", "--", "migrations/postgres"]);
    let newest = newest.trim();
    assert!(!newest.is_empty(), "the history is not whole: git fetch --unshallow");
    let directory = target().join("previous").join(newest);
    if !directory.exists() {
        let new = directory.with_extension("new");
        let _ = fs::remove_dir_all(&new);
        fs::create_dir_all(&new).unwrap();
        let archive = format!("git archive '{newest}^' | tar -x -C '{}'", new.display());
        output(Command::new("bash").args(["-euo", "pipefail", "-c", &archive]).current_dir(repository()));
        set_apart(&new, newest);
        fs::rename(&new, &directory).unwrap();
    }
    // It answers a few requests: optimising it would take longer than all of them.
    let unoptimised = ["--config", "profile.dev.package.keypool-server.opt-level=0"];
    built::build(&directory, &[PREVIOUS], &unoptimised).join(PREVIOUS)
}

/// Gives what the program is made of another version, and it another name: so nothing of it takes the place of today's in
/// the target directory that the two share, and of nothing that was built there of another commit.
fn set_apart(directory: &Path, commit: &str) {
    let change = |file: &str, change: &dyn Fn(String) -> String| {
        let path = directory.join(file);
        fs::write(&path, change(fs::read_to_string(&path).unwrap())).unwrap();
    };
    let version = concat!("version = \"", env!("CARGO_PKG_VERSION"), "\"");
    let other = format!("version = \"0.0.0-{}\"", &format!("before.{commit}")[..16]);
    change("Cargo.toml", &|text| text.replacen(version, &other, 1));
    change("Cargo.lock", &|text| {
        let mut parts = text.split("name = \"keypool-");
        let first = parts.next().unwrap().to_owned();
        parts.fold(first, |text, part| text + "name = \"keypool-" + &part.replacen(version, &other, 1))
    });
    let program = "[[bin]]\nname = \"keypool-server-previous\"\npath = \"src/main.rs\"\n\n[dependencies]";
    change("server/Cargo.toml", &|text| text.replacen("[dependencies]", program, 1));
    // They would have the names of today's.
    for member in ["client", "transparency"] {
        let _ = fs::remove_dir_all(directory.join(member).join("examples"));
        change(&format!("{member}/Cargo.toml"), &|text| without_examples(&text));
    }
}

/// A manifest without its sections of examples.
fn without_examples(manifest: &str) -> String {
    let sections = manifest.split("\n[").enumerate();
    let kept = sections.filter(|(_, section)| !section.starts_with("[example]]"));
    kept.map(|(n, section)| if n == 0 { section.to_owned() } else { format!("\n[{section}") }).collect()
}

/// That Bob can reserve and spend at one server what Alice has uploaded at another.
async fn work_together(alice: &Http, bob: &Http) {
    alice.uploaded(&[Device::new("alice", "laptop").key_package()]).await;
    let reservation = bob.reserved("alice").await;
    bob.spend(&reservation, "friends").await.ok();
    let released = bob.reserved("alice").await;
    bob.release(&released).await.ok();
}

/// A server of the version before the newest migration, and two callers that have worked with it.
async fn scene(db: Database) -> (&'static Path, Place, ServerProcess, [Http; 2]) {
    let program = tokio::task::spawn_blocking(previous).await.unwrap();
    let place = tokio::task::spawn_blocking(move || db.fresh()).await.unwrap();
    let old = ServerProcess::start_program(program, &place).await;
    let (alice, bob) = (
        Http::new(&old.base).registered("alice", "laptop").await,
        Http::new(&old.base).registered("bob", "phone").await,
    );
    let device = Device::new("alice", "laptop");
    alice.uploaded(&device.key_packages(10)).await;
    alice.uploaded(&[device.last_resort()]).await;
    work_together(&alice, &bob).await;
    (program, place, old, [alice, bob])
}

async fn has_spent(alice: &Http, count: u64) {
    let status = alice.status().await;
    assert_eq!((&status["spent"], &status["fenced_at"]), (&count.into(), &serde_json::Value::Null));
}

#[tokio::test]
async fn the_server_of_the_schema_before_serves_on_beside_the_new_one() {
    let (program, place, old, [alice, bob]) = scene(Database::Postgres).await;
    // The new one migrates while the old one serves.
    let new = ServerProcess::start(&place).await;
    work_together(&alice, &bob).await;
    work_together(&alice.at(&new.base), &bob).await;
    work_together(&alice, &bob.at(&new.base)).await;
    // The old one is started on the new schema, as when an upgrade is taken back half-way.
    let again = ServerProcess::start_program(program, &place).await;
    work_together(&alice.at(&again.base), &bob.at(&new.base)).await;
    drop((old, again));
    work_together(&alice.at(&new.base), &bob.at(&new.base)).await;
    has_spent(&alice.at(&new.base), 6).await;
}

/// One server alone uses an SQLite file.
#[tokio::test]
async fn the_servers_of_both_schemas_take_turns_on_an_sqlite_file() {
    let (program, place, old, [alice, bob]) = scene(Database::Sqlite).await;
    drop(old);
    let new = ServerProcess::start(&place).await;
    work_together(&alice.at(&new.base), &bob.at(&new.base)).await;
    drop(new);
    // The upgrade is taken back, and made once more.
    let again = ServerProcess::start_program(program, &place).await;
    work_together(&alice.at(&again.base), &bob.at(&again.base)).await;
    drop(again);
    let new = ServerProcess::start(&place).await;
    work_together(&alice.at(&new.base), &bob.at(&new.base)).await;
    has_spent(&alice.at(&new.base), 4).await;
}
