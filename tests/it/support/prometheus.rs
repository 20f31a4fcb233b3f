//! A Prometheus of a test's own, with the configuration of `deploy/prometheus`. Only the servers' addresses and the times
//! differ, so that the test is quick.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tempfile::TempDir;

use super::{Http, PATIENCE, repository, server::free_port};

const REMEDY: &str = "install Prometheus with `sudo apt-get install prometheus`";

/// A running Prometheus. It ends with the test.
#[derive(Debug)]
pub struct Prometheus {
    api: Http,
    child: Child,
    directory: TempDir,
}

/// An alert that fires: its name, and the server that it is about, if it is about one.
pub type Firing = (String, Option<String>);

impl Prometheus {
    /// Starts one that scrapes these addresses.
    pub async fn start(servers: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [("prometheus.yml", configuration(servers)), ("alerts.yml", alerts())] {
            fs::write(directory.path().join(name), text).unwrap();
        }
        let address = format!("127.0.0.1:{}", free_port());
        let log = File::create(directory.path().join("log")).unwrap();
        let child = Command::new("prometheus")
            .arg("--config.file")
            .arg(directory.path().join("prometheus.yml"))
            .arg("--storage.tsdb.path")
            .arg(directory.path().join("data"))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect(REMEDY);
        let mut prometheus = Self { api: Http::new(&format!("http://{address}")), child, directory };
        prometheus.ready().await;
        prometheus
    }

    async fn ready(&mut self) {
        let patience = Instant::now() + PATIENCE;
        while !self.api.try_send(reqwest::Method::GET, "/-/ready", None).await.is_ok_and(|answer| answer.status == 200)
        {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < patience,
                "Prometheus does not start: {ended:?}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// The answer of its API to a call that has to succeed.
    pub async fn get(&self, path: &str) -> Value {
        self.api.get(&format!("/api/v1/{path}")).await.ok()["data"].clone()
    }

    /// The series of a query's result.
    pub async fn query(&self, query: &str) -> Vec<Value> {
        let query = utf8_percent_encode(query, NON_ALPHANUMERIC);
        let Value::Array(result) = self.get(&format!("query?query={query}")).await["result"].take() else {
            panic!("{query} is no vector")
        };
        result
    }

    /// The values of a label that a variable's query `label_values(SELECTOR, LABEL)` lists in Grafana.
    pub async fn label_values(&self, query: &str) -> Vec<String> {
        let arguments = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (selector, label) = arguments.and_then(|arguments| arguments.rsplit_once(", ")).unwrap();
        let selector = utf8_percent_encode(selector, NON_ALPHANUMERIC);
        let values = self.get(&format!("label/{label}/values?match[]={selector}")).await;
        serde_json::from_value(values).unwrap()
    }

    /// The alerts that fire now.
    pub async fn firing(&self) -> BTreeSet<Firing> {
        let alerts = self.get("alerts").await["alerts"].take();
        let firing = alerts.as_array().unwrap().iter().filter(|alert| alert["state"] == "firing");
        let label = |alert: &Value, name| Some(alert["labels"][name].as_str()?.to_owned());
        firing.map(|alert| (label(alert, "alertname").unwrap(), label(alert, "instance"))).collect()
    }

    /// Waits until exactly these alerts fire.
    pub async fn fires(&self, expected: &[(&str, Option<&str>)]) {
        let expected: BTreeSet<Firing> =
            expected.iter().map(|(name, server)| ((*name).to_owned(), server.map(str::to_owned))).collect();
        let patience = Instant::now() + PATIENCE;
        loop {
            let firing = self.firing().await;
            if firing == expected {
                return;
            }
            assert!(Instant::now() < patience, "expected {expected:?}, got {firing:?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The shipped configuration, with these servers in place of those that DNS finds.
fn configuration(servers: &[&str]) -> String {
    let shipped = fs::read_to_string(repository().join("deploy/prometheus/prometheus.yml")).unwrap();
    let (rest, discovery) = shipped.split_once("    dns_sd_configs:\n").expect("prometheus.yml finds servers by DNS");
    assert!(discovery.lines().all(|line| line.starts_with("      ")), "prometheus.yml goes on after dns_sd_configs");
    assert_eq!(rest.matches("_interval: 15s\n").count(), 2, "scrape_interval and evaluation_interval");
    let rest = rest.replace("_interval: 15s\n", "_interval: 500ms\n");
    format!("{rest}    static_configs: [{{targets: {servers:?}}}]\n")
}

/// The shipped alerts, which fire after a second.
fn alerts() -> String {
    let shipped = fs::read_to_string(repository().join("deploy/prometheus/alerts.yml")).unwrap();
    changed_alerts(&shipped, "for", |_| "1s".to_owned())
}

/// Alerts with another `expr` or `for` for each: `change` gets the shipped one.
pub fn changed_alerts(alerts: &str, field: &str, change: impl Fn(&str) -> String) -> String {
    let field = format!("        {field}: ");
    let count = alerts.matches("- alert: ").count();
    assert_eq!(alerts.lines().filter(|line| line.starts_with(&field)).count(), count, "each alert has a line {field}");
    let changed = |line: &str| match line.strip_prefix(&field) {
        Some(value) => format!("{field}{}\n", change(value)),
        None => format!("{line}\n"),
    };
    alerts.lines().map(changed).collect()
}

/// `promtool`, which comes with Prometheus.
pub fn promtool(arguments: &[&str]) -> (bool, String) {
    let output = Command::new("promtool").args(arguments).current_dir(repository()).output().expect(REMEDY);
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}
