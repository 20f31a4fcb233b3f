//! The Grafana dashboard: what any Grafana needs of it, and what its panels show of real servers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::{Duration, Instant},
};

use promql_parser::parser::parse;
use serde_json::{Value, json};
use tokio::join;

use crate::{
    deployment::selected,
    support::{Database, Device, Http, PATIENCE, Prometheus, ServerProcess, repository},
};

fn dashboard() -> Value {
    let text = fs::read_to_string(repository().join("deploy/grafana/dashboards/keypool.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn array(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("{value} is no array"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no string"))
}

/// Each query of the panels, with its panel's title.
fn queries(dashboard: &Value) -> Vec<(&str, &str)> {
    let mut queries = Vec::new();
    for panel in array(&dashboard["panels"]) {
        let of_panel = array(&panel["targets"]).iter().map(|target| text(&target["expr"]));
        queries.extend(of_panel.map(|query| (text(&panel["title"]), query)));
    }
    queries
}

/// Every `datasource` in a part of the dashboard.
fn datasources<'a>(part: &'a Value, found: &mut Vec<&'a Value>) {
    match part {
        Value::Object(fields) => {
            found.extend(fields.get("datasource"));
            fields.values().for_each(|value| datasources(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| datasources(item, found)),
        _ => {}
    }
}

/// In a Grafana with other data sources, and a Prometheus with other jobs.
#[test]
fn the_dashboard_works_in_any_grafana() {
    let dashboard = dashboard();
    let variables = array(&dashboard["templating"]["list"]);
    let names: Vec<_> = variables.iter().map(|variable| text(&variable["name"])).collect();
    assert_eq!(names, ["datasource", "job", "instance"], "each is chosen from what the ones before it have");
    assert_eq!((text(&variables[0]["type"]), text(&variables[0]["query"])), ("datasource", "prometheus"));

    let mut sources = Vec::new();
    datasources(&dashboard, &mut sources);
    let has_source = |part: &&Value| !part["datasource"].is_object();
    let without: Vec<_> = variables[1..].iter().chain(array(&dashboard["panels"])).filter(has_source).collect();
    assert!(without.is_empty(), "without a datasource: {without:?}");
    for source in sources {
        assert_eq!(*source, json!({"type": "prometheus", "uid": "${datasource}"}));
    }

    for (title, query) in queries(&dashboard) {
        let mut metrics = BTreeMap::new();
        selected(&parse(query).unwrap(), &mut metrics);
        let chosen = r#"job="$job",instance=~"$instance""#;
        for (metric, _) in metrics {
            let all = query.matches(&format!("{metric}{{")).count();
            assert_eq!(
                query.matches(&format!("{metric}{{{chosen}")).count(),
                all,
                "{title}: {metric} needs {{{chosen}}}"
            );
            assert!(all > 0, "{title}: {metric} needs {{{chosen}}}");
        }
    }
}

#[test]
fn each_panel_has_its_own_place_and_says_what_it_shows() {
    let dashboard = dashboard();
    let panels = array(&dashboard["panels"]);
    let distinct = |what: &str, part: fn(&Value) -> &Value| {
        let values: BTreeSet<_> = panels.iter().map(|panel| part(panel).to_string()).collect();
        assert_eq!(values.len(), panels.len(), "{what} of all panels: {values:?}");
    };
    distinct("id", |panel| &panel["id"]);
    distinct("title", |panel| &panel["title"]);
    let mut taken = BTreeMap::new();
    for panel in panels {
        let title = text(&panel["title"]);
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
        let ids: BTreeSet<_> = array(&panel["targets"]).iter().map(|target| text(&target["refId"])).collect();
        assert_eq!(ids.len(), array(&panel["targets"]).len(), "{title}: {ids:?}");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        assert!(x + w <= 24, "{title} is wider than the grid of 24 columns");
        for place in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            let before = taken.insert(place, title);
            assert!(before.is_none(), "{title} covers {before:?} at {place:?}");
        }
    }
}

/// A query as Grafana sends it when these servers are chosen.
fn sent(query: &str, instance: &str) -> String {
    let sent = query.replace("$job", "keypool").replace("$instance", instance);
    assert!(!sent.contains('$'), "a variable that the dashboard has not: {sent}");
    sent
}

/// Whether one of the series has a number, which a division by zero has not.
fn is_shown(series: &[Value]) -> bool {
    series.iter().any(|one| text(&one["value"][1]).parse::<f64>().unwrap().is_finite())
}

/// A little of everything that clients do.
async fn work(alice: &Http, bob: &Http) {
    alice.status().await;
    alice.uploaded(&[Device::new("alice", "laptop").key_package()]).await;
    let reservation = bob.reserved("alice").await;
    bob.spend(&reservation, "friends").await.ok();
}

#[tokio::test]
async fn every_panel_shows_something_of_each_server_and_of_all() {
    let place = Database::Postgres.migrated();
    let (one, other) = join!(ServerProcess::start(&place), ServerProcess::start(&place));
    let servers = [one.address(), other.address()];
    let prometheus = Prometheus::start(&servers).await;
    let anyone = Http::new(&one.base);
    let (alice, bob) = join!(anyone.registered("alice", "laptop"), anyone.registered("bob", "phone"));

    let dashboard = dashboard();
    let queries = queries(&dashboard);
    // Grafana's "All" is the variable's `allValue`.
    let all = text(&dashboard["templating"]["list"][2]["allValue"]);
    let mut hidden: Vec<_> = [all, servers[0], servers[1]]
        .into_iter()
        .flat_map(|instance| queries.iter().map(move |(title, query)| (*title, sent(query, instance))))
        .collect();
    let patience = Instant::now() + PATIENCE;
    while !hidden.is_empty() {
        assert!(Instant::now() < patience, "these show nothing: {hidden:#?}");
        for base in [&one.base, &other.base] {
            work(&alice.at(base), &bob.at(base)).await;
        }
        let mut still = Vec::new();
        for (title, query) in hidden {
            if !is_shown(&prometheus.query(&query).await) {
                still.push((title, query));
            }
        }
        hidden = still;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let mut servers = servers.map(str::to_owned).to_vec();
    servers.sort();
    let variables = &dashboard["templating"]["list"];
    for (variable, values) in [(&variables[1], vec!["keypool".to_owned()]), (&variables[2], servers)] {
        let query = text(&variable["query"]["query"]);
        assert_eq!(variable["definition"], query);
        assert_eq!(prometheus.label_values(&sent(query, all)).await, values, "{query}");
    }
}
