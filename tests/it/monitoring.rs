//! Prometheus with the shipped configuration and alerts, on real servers.

use std::fs;

use tokio::join;

use crate::support::{Database, Prometheus, ServerProcess, changed_alerts, promtool, repository};

#[test]
fn the_configuration_and_the_alerts_are_valid() {
    for (what, file) in [("config", "prometheus.yml"), ("rules", "alerts.yml")] {
        let file = format!("deploy/prometheus/{file}");
        let (valid, said) = promtool(&["check", what, "--lint=all", "--lint-fatal", &file]);
        assert!(valid && !said.contains("WARN"), "{said}");
    }
}

#[test]
fn each_alert_fires_after_its_time_and_clears() {
    let (passed, said) = promtool(&["test", "rules", "deploy/prometheus/tests.yml"]);
    assert!(passed, "{said}");
}

/// The names of the alerts whose tests fail when all alerts are changed in this way.
fn noticed(field: &str, change: impl Fn(&str) -> String) -> String {
    let directory = tempfile::tempdir().unwrap();
    let [alerts, tests] = ["alerts.yml", "tests.yml"]
        .map(|name| (repository().join("deploy/prometheus").join(name), directory.path().join(name)));
    fs::write(&alerts.1, changed_alerts(&fs::read_to_string(&alerts.0).unwrap(), field, change)).unwrap();
    fs::copy(&tests.0, &tests.1).unwrap();
    promtool(&["test", "rules", tests.1.to_str().unwrap()]).1
}

/// Twice the time.
fn doubled(time: &str) -> String {
    let (number, unit) = time.split_at(time.len() - 1);
    format!("{}{unit}", 2 * number.parse::<u32>().unwrap())
}

/// A new alert needs tests in `deploy/prometheus/tests.yml`: before its time, when it fires, and after its end.
#[test]
fn the_tests_of_the_alerts_notice_each_wrong_alert() {
    let alerts = fs::read_to_string(repository().join("deploy/prometheus/alerts.yml")).unwrap();
    let names: Vec<_> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() > 10, "{names:?}");
    let wrong = [
        ("never fires", noticed("expr", |_| "vector(0) > 0".to_owned())),
        ("never clears", noticed("expr", |expr| format!("max_over_time(({expr})[1d:1m])"))),
        ("fires at once", noticed("for", |_| "0s".to_owned())),
        ("fires late", noticed("for", doubled)),
    ];
    for (how, said) in &wrong {
        for name in &names {
            assert!(said.contains(&format!("alertname: {name},")), "no test fails when {name} {how}:\n{said}");
        }
    }
}

#[tokio::test]
async fn prometheus_sees_every_server_and_alerts_while_one_or_all_are_gone() {
    let place = Database::Postgres.migrated();
    let (one, other) = join!(ServerProcess::start(&place), ServerProcess::start(&place));
    let (first, second) = (one.address().to_owned(), other.address().to_owned());
    let prometheus = Prometheus::start(&[&first, &second]).await;

    prometheus.fires(&[]).await;
    other.kill();
    prometheus.fires(&[("KeypoolServerDown", Some(&second))]).await;
    one.kill();
    let all = [("KeypoolDown", None), ("KeypoolServerDown", Some(&*first)), ("KeypoolServerDown", Some(&*second))];
    prometheus.fires(&all).await;
    let _one = ServerProcess::start_at(&place, &first).await;
    prometheus.fires(&[("KeypoolServerDown", Some(&second))]).await;
    let _other = ServerProcess::start_at(&place, &second).await;
    prometheus.fires(&[]).await;

    for target in prometheus.get("targets?state=active").await["activeTargets"].as_array().unwrap() {
        assert_eq!((&target["health"], &target["lastError"]), (&"up".into(), &"".into()), "{target}");
    }
    for group in prometheus.get("rules").await["groups"].as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            assert_eq!(rule["health"], "ok", "{rule}");
        }
    }
}
