//! `kill -9` at any moment of the client's work, 200 times.

use std::{
    collections::HashSet,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use keypool_client::{MlsClient, Warning};
use keypool_openapi::{Action, KeyPackageRef, State};
use keypool_server::config::Limits;
use rand::RngExt as _;
use rstest::rstest;

use super::helpers::invited;
use crate::support::{Database, Device, Owner, TestServer, command, example};

/// On each of the two databases.
const KILLS: usize = 100;

fn keypool(directory: &Path, args: &[&str]) -> Command {
    let mut keypool = command("keypool");
    keypool.arg("--data-dir").arg(directory).args(args);
    keypool
}

/// Runs a program for so long, and kills it if it is not done by then. Answers how long it took.
async fn killed_after(mut command: Command, span: Duration) -> Duration {
    let started = Instant::now();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while child.try_wait().unwrap().is_none() && started.elapsed() < span {
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    let took = started.elapsed();
    let _ = child.kill();
    child.wait().unwrap();
    took
}

/// A moment of a program that takes so long as a whole.
fn moment(whole: Duration) -> Duration {
    whole.mul_f64(rand::rng().random_range(0.0..1.1))
}

/// The state after the program was killed at any moment: all that the server offers has its keys here,
/// each row its keys and each key its row, and nothing was uploaded as something else before.
async fn is_sound(client: &MlsClient) {
    let (rows, keys, without) = client.rows_and_keys().unwrap();
    assert_eq!((rows, without), (keys, 0), "rows without keys, or keys without a row");
    for item in client.inventory().await.unwrap() {
        if matches!(item.state, State::Available | State::Reserved) {
            let here = client.pool().has_keys(&item.keypackage_ref).unwrap();
            assert!(here, "the server offers {} without its keys being here", item.keypackage_ref);
        }
    }
    let mut uploads: HashSet<KeyPackageRef> = HashSet::new();
    let mut before = None;
    loop {
        let page = client.audit(before, 1_000).await.unwrap();
        for event in page.events.into_iter().filter(|event| event.action == Action::Upload) {
            assert!(uploads.insert(event.keypackage_ref), "a KeyPackage was taken twice");
        }
        before = page.next;
        if before.is_none() {
            break;
        }
    }
}

/// That the next refresh fills the pool, and leaves everything sound.
async fn recovers(client: &MlsClient) {
    is_sound(client).await;
    let report = client.refresh_key_packages(&|_| ()).await.unwrap();
    assert_eq!((report.pool.fresh, report.pool.last_resort.present), (32, true), "{report:?}");
    assert!(client.pool().agrees_with(&report.pool).unwrap());
    // The server's clock stands still, and these programs go by the real one.
    let is_expected = |warning: &Warning| matches!(warning, Warning::Draining { .. } | Warning::ClockSkew { .. });
    assert!(report.warnings.iter().all(is_expected), "{:?}", report.warnings);
    is_sound(client).await;
}

#[rstest]
#[tokio::test]
async fn a_client_that_is_killed_at_any_moment_loses_nothing(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, |config| config.limits = Limits::Off).await;
    let place = tempfile::tempdir().unwrap();
    let bob = Owner::of(&server, "bob").await;
    let init = |user: &str| {
        let directory = place.path().join(user);
        let args = ["init", "--server", &server.base, "--user", user];
        (keypool(&directory, &args), directory)
    };
    let forever = Duration::from_mins(1);
    let (whole, kept) = init("whole");
    let of_init = killed_after(whole, forever).await;
    MlsClient::open(&kept).unwrap().revoke(None).await.unwrap();
    let of_refresh = killed_after(keypool(&kept, &["refresh"]), forever).await;
    let of_join = of_refresh / 2;
    for round in 0..KILLS {
        match round % 3 {
            0 => {
                let user = format!("user-{round}");
                let (command, directory) = init(&user);
                killed_after(command, moment(of_init)).await;
                // As its user does: the same command once more.
                let (mut again, _) = init(&user);
                assert!(again.stdout(Stdio::null()).status().unwrap().success());
                recovers(&MlsClient::open(&directory).unwrap()).await;
            }
            1 => {
                MlsClient::open(&kept).unwrap().revoke(None).await.unwrap();
                killed_after(keypool(&kept, &["refresh"]), moment(of_refresh)).await;
                recovers(&MlsClient::open(&kept).unwrap()).await;
            }
            _ => {
                let name = format!("group-{round}");
                let mut group = bob.create_group(name.as_bytes()).unwrap();
                let invitation = invited(&bob, &mut group, &"whole".parse().unwrap()).await.unwrap();
                let welcome = place.path().join("welcome");
                fs::write(&welcome, &invitation.welcome).unwrap();
                let mut join = Command::new(example("join"));
                join.arg(&kept).arg(&welcome);
                killed_after(join, moment(of_join)).await;
                let client = MlsClient::open(&kept).unwrap();
                // Either all of the join has happened, or nothing.
                if client.load_group(name.as_bytes()).is_err() {
                    client.join(&invitation.welcome).await.unwrap();
                }
                assert!(!client.pool().has_keys(&invitation.added[0].keypackage_ref).unwrap());
                assert_eq!(client.load_group(name.as_bytes()).unwrap().members().count(), 2);
                is_sound(&client).await;
            }
        }
    }
}

/// On each of the two databases.
const INVITATIONS: usize = 40;

/// An invitation that is cut off anywhere is either complete or has not happened: in the group, spent, and with a Welcome
/// in the queue, or none of these.
#[rstest]
#[tokio::test]
async fn an_invitation_that_is_killed_at_any_moment_is_whole_or_nothing(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start_with(db, |config| config.limits = Limits::Off).await;
    let place = tempfile::tempdir().unwrap();
    let alice = place.path().join("alice");
    let run = |args: &[&str]| assert!(keypool(&alice, args).stdout(Stdio::null()).status().unwrap().success());
    run(&["init", "--server", &server.base, "--user", "alice"]);
    run(&["group", "create", "friends"]);
    let guest = async |name: String| {
        let guest = server.anyone().registered(&name, "phone").await;
        guest.uploaded(&[Device::new(&name, "phone").key_package()]).await;
        guest
    };
    guest("first".to_owned()).await;
    let whole = killed_after(keypool(&alice, &["group", "invite", "friends", "first"]), Duration::from_mins(1)).await;
    let (mut added, mut expected) = (0, 2);
    for round in 0..INVITATIONS {
        let name = format!("guest-{round}");
        let guest = guest(name.clone()).await;
        killed_after(keypool(&alice, &["group", "invite", "friends", &name]), moment(whole)).await;
        let client = MlsClient::open(&alice).unwrap();
        client.membership().settle().await.unwrap();
        let group = client.membership().find_group("friends").unwrap();
        let members = client.membership().members(&group.group_id).unwrap();
        let is_in = members.iter().any(|member| member.user.as_str() == name);
        let spent = guest.status().await["spent"].as_u64().unwrap();
        let queued = guest.get("/messages").await.ok();
        let welcomes = queued["messages"].as_array().unwrap().iter().filter(|one| one["kind"] == "welcome").count();
        assert_eq!((is_in, spent, welcomes), (is_in, u64::from(is_in), usize::from(is_in)), "round {round}");
        expected += usize::from(is_in);
        assert_eq!(members.len(), expected);
        added += usize::from(is_in);
        // And the next one works.
        client.membership().update_keys(&group.group_id).await.unwrap();
    }
    println!("{added} of {INVITATIONS} happened");
}
