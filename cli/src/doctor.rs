//! Checks what may be wrong with a device, and gives advice.

use std::{collections::BTreeMap, path::Path};

use jiff::{SignedDuration, Timestamp};
use keypool_client::{
    Clock as _, Error, Group, GroupState, KeyPackageStatus, MAX_SKEW, MlsClient, SystemClock, is_in_the_clear, skew,
};
use keypool_openapi::{GroupsQuery, Health, PoolStatus, ProblemType};
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::hint;

/// The most groups that are compared with the server's list.
const MAX_GROUPS: usize = 10_000;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing is wrong.
    Ok,
    /// It works, but the user should do something.
    Warning,
    /// It does not work.
    Failure,
}

/// One check with its result.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Check {
    /// The name of the check.
    pub name: &'static str,
    /// Its result.
    pub verdict: Verdict,
    /// The finding.
    pub found: String,
    /// What the user should do, if anything.
    pub advice: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), advice: None }
    }

    fn warning(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warning, found: found.into(), advice: Some(advice.into()) }
    }

    fn failure(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Failure, found: found.into(), advice: Some(advice.into()) }
    }

    fn of_error(name: &'static str, error: &Error) -> Self {
        let advice = hint(error).unwrap_or("see the error");
        Self::failure(name, error.with_causes(), advice)
    }
}

/// Checks this device's files, keys, server and clock, and whether the device and the server agree. Changes
/// nothing.
pub async fn check(client: &MlsClient) -> Vec<Check> {
    let mut checks = vec![permissions(client.store().directory()), integrity(client), keys(client)];
    checks.push(match client.api().server_version().await {
        Ok(_) if is_in_the_clear(client.api().server()) => Check::warning(
            "server",
            format!("anyone on the network path to {} can read the token of this device", client.api().server()),
            "use https:// if the server has it",
        ),
        Ok(version) => versions(&version),
        Err(error) => Check::of_error("server", &error),
    });
    match client.status().await {
        Ok(status) => {
            checks.push(Check::ok(
                "token",
                format!("{} is known to {}", client.identity().identity(), client.api().server()),
            ));
            checks.push(clocks(SystemClock.now(), status.at));
            checks.push(agreement(client, &status));
            checks.push(health(&status));
            checks.push(groups(client).await);
            checks.push(log(client, status.log.is_some()));
        }
        Err(error) => checks.push(Check::of_error("token", &error)),
    }
    checks
}

/// Compares the epochs of this device's groups with those that the server knows.
async fn groups(client: &MlsClient) -> Check {
    const NAME: &str = "groups";
    let groups = match client.membership().groups() {
        Ok(groups) => groups,
        Err(error) => return Check::of_error(NAME, &error),
    };
    let mut newest = BTreeMap::new();
    let mut query = GroupsQuery::default();
    loop {
        let page = match client.api().groups(&query).await {
            Ok(page) => page,
            // A server of an older version keeps no list.
            Err(error) if error.problem() == Some(ProblemType::NotFound) => break,
            Err(error) => return Check::of_error(NAME, &error),
        };
        newest.extend(page.groups.into_iter().map(|group| (group.group_id.0, group.epoch)));
        match page.next {
            Some(next) if newest.len() < MAX_GROUPS => query.after = Some(next),
            _ => break,
        }
    }
    let has_left = |group: &&Group| {
        let is_behind = matches!(group.state, GroupState::Behind | GroupState::FellBehind);
        let epoch = newest.get(&group.group_id).copied().unwrap_or_default();
        is_behind || group.state == GroupState::Active && epoch > group.epoch
    };
    let left: Vec<_> = groups.iter().filter(has_left).map(|group| group.name.as_str()).collect();
    if left.is_empty() {
        return Check::ok(NAME, format!("this device follows its {} groups", groups.len()));
    }
    Check::warning(
        NAME,
        format!("the other members have gone on in {}", left.join(", ")),
        "run `keypool receive`: the device catches up, or comes back by itself if it can; `keypool group list` shows the state",
    )
}

/// Whether the server's transparency log shows what it has to show.
fn log(client: &MlsClient, has_log: bool) -> Check {
    const NAME: &str = "transparency log";
    let state = match client.log().state() {
        Ok(state) => state,
        Err(error) => return Check::of_error(NAME, &error),
    };
    let waits = state.hand_outs.due + state.own.due;
    match (has_log, &state.origin) {
        (false, None) => Check::ok(NAME, "the server has none: it is believed to hand out nothing twice"),
        (false, Some(_)) => {
            Check::warning(NAME, "the server had one, and shows none any more", "ask the server's operator")
        }
        (true, None) => Check::warning(NAME, "this device has not looked at it yet", "run `keypool refresh`"),
        (true, Some(_)) if waits > 0 => {
            let found = format!("{waits} hand-outs are not compared with it yet");
            Check::warning(NAME, found, "run `keypool refresh`; `keypool log` shows more")
        }
        (true, Some(_)) => {
            let checked = state.hand_outs.fine + state.own.fine;
            Check::ok(NAME, format!("{checked} hand-outs are in it as they have to be, up to leaf {}", state.size))
        }
    }
}

fn integrity(client: &MlsClient) -> Check {
    match client.store().integrity() {
        Ok(wrong) if wrong.is_empty() => Check::ok("local store", "SQLite finds no damage"),
        Ok(wrong) => Check::failure("local store", wrong.join("; "), "restore the data directory from a backup"),
        Err(error) => Check::of_error("local store", &error),
    }
}

fn keys(client: &MlsClient) -> Check {
    match client.rows_and_keys() {
        Ok((rows, keys, 0)) if rows == keys => {
            Check::ok("private keys", format!("all {rows} KeyPackages have their private keys"))
        }
        Ok((rows, keys, without)) => Check::failure(
            "private keys",
            format!("{rows} KeyPackages and {keys} sets of private keys; {without} KeyPackages have no keys"),
            "run `keypool refresh`: it revokes those without keys and makes new ones",
        ),
        Err(error) => Check::of_error("private keys", &error),
    }
}

fn agreement(client: &MlsClient, status: &PoolStatus) -> Check {
    let unsent = client.local_counts().map(|counts| counts.get(&KeyPackageStatus::Created).copied().unwrap_or(0));
    match (client.pool().agrees_with(status), unsent) {
        (Ok(true), Ok(0)) => Check::ok("agreement", "this device and the server have the same KeyPackages"),
        (Ok(agrees), Ok(unsent)) => {
            let found = if agrees {
                format!("{unsent} KeyPackages are not uploaded yet")
            } else {
                "the server's pool has changed since the last refresh".to_owned()
            };
            Check::warning("agreement", found, "run `keypool refresh`")
        }
        (Err(error), _) | (_, Err(error)) => Check::of_error("agreement", &error),
    }
}

#[cfg(unix)]
fn permissions(directory: &Path) -> Check {
    use std::os::unix::fs::PermissionsExt as _;

    const NAME: &str = "permissions";
    let open = |path: &Path| std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o077 != 0);
    let files = match std::fs::read_dir(directory) {
        Ok(files) => files.filter_map(|file| file.ok().map(|file| file.path())),
        Err(error) => return Check::failure(NAME, error.to_string(), "make the data directory readable for your user"),
    };
    match files.chain([directory.to_owned()]).find(|path| open(path)) {
        None => Check::ok(NAME, format!("only you can read {}", directory.display())),
        Some(path) => Check::warning(
            NAME,
            format!("other users can read {}", path.display()),
            format!(
                "run `chmod -R go= '{}'`; if other people use this machine, run `keypool rotate` afterwards",
                directory.display()
            ),
        ),
    }
}

#[cfg(not(unix))]
fn permissions(directory: &Path) -> Check {
    Check::ok("permissions", format!("{} has the permissions of its directory", directory.display()))
}

fn versions(server: &str) -> Check {
    let here = env!("CARGO_PKG_VERSION");
    // Before 1.0 a minor version may break, after it a major one (Semantic Versioning).
    let line = |version: &str| {
        let mut parts = version.split('.').map(str::to_owned);
        match parts.next() {
            Some(major) if major == "0" => format!("0.{}", parts.next().unwrap_or_default()),
            major => major.unwrap_or_default(),
        }
    };
    let found = format!("the server is {server}, this is {here}");
    if line(server) == line(here) {
        Check::ok("server", found)
    } else {
        Check::warning("server", found, "use the same version on both sides")
    }
}

fn clocks(here: Timestamp, there: Timestamp) -> Check {
    let skew = skew(here, there);
    let found = format!("this machine's clock is {} s {} the server's", skew.as_secs().unsigned_abs(), side(skew));
    if skew.abs() <= MAX_SKEW {
        Check::ok("clock", found)
    } else {
        Check::warning("clock", found, "set the clock that is wrong")
    }
}

fn side(skew: SignedDuration) -> &'static str {
    if skew.is_negative() { "behind" } else { "ahead of" }
}

fn health(status: &PoolStatus) -> Check {
    let found = format!("{} fresh KeyPackages", status.fresh);
    match status.health {
        Health::Good => Check::ok("pool", found),
        Health::Low => Check::warning("pool", found, "run `keypool refresh`"),
        Health::Empty => Check::failure("pool", found, "run `keypool refresh`: nobody can add this device"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_far_as_they_may_break() {
        let here = env!("CARGO_PKG_VERSION");
        assert_eq!(versions(here).verdict, Verdict::Ok);
        assert_eq!(versions("0.1.99").verdict, Verdict::Ok);
        assert_eq!(versions("0.2.0").verdict, Verdict::Warning);
        assert_eq!(versions("1.0.0").verdict, Verdict::Warning);
        assert_eq!(versions("").verdict, Verdict::Warning);
    }

    #[test]
    fn a_clock_that_is_a_minute_off_is_told() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let off = |seconds| clocks(now + SignedDuration::from_secs(seconds), now);
        assert_eq!((off(60).verdict, off(-60).verdict), (Verdict::Ok, Verdict::Ok));
        assert_eq!((off(61).verdict, off(-61).verdict), (Verdict::Warning, Verdict::Warning));
        assert!(off(-61).found.contains("61 s behind"), "{}", off(-61).found);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_can_read_is_told() {
        use std::os::unix::fs::PermissionsExt as _;

        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let file = directory.path().join("device.db");
        std::fs::write(&file, b"").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(permissions(directory.path()).verdict, Verdict::Ok);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let told = permissions(directory.path());
        assert!(told.verdict == Verdict::Warning && told.found.contains("device.db"), "{told:?}");
    }
}
