//! docker-compose.yml and deploy/, as far as they can be checked without containers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    process::Command,
};

use keypool_server::config::Config;
use promql_parser::parser::{Expr, parse};
use rstest::rstest;
use serde_json::Value;

use crate::support::{Database, Device, TestServer, cargo, output, repository, texts};

/// The target that the image is built for.
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap()
}

/// The metrics of a query, each with the labels that it goes by.
pub fn selected(expr: &Expr, found: &mut BTreeMap<String, BTreeSet<String>>) {
    match expr {
        Expr::VectorSelector(selector) => {
            let labels = selector.matchers.matchers.iter().map(|matcher| matcher.name.clone());
            found.entry(selector.name.clone().unwrap()).or_default().extend(labels);
        }
        Expr::MatrixSelector(selector) => selected(&Expr::VectorSelector(selector.vs.clone()), found),
        Expr::Aggregate(aggregate) => selected(&aggregate.expr, found),
        Expr::Unary(unary) => selected(&unary.expr, found),
        Expr::Binary(binary) => [&binary.lhs, &binary.rhs].into_iter().for_each(|side| selected(side, found)),
        Expr::Paren(paren) => selected(&paren.expr, found),
        Expr::Subquery(subquery) => selected(&subquery.expr, found),
        Expr::Call(call) => call.args.args.iter().for_each(|one| selected(one, found)),
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => {}
    }
}

/// Every query of the dashboard and of the alerts.
fn queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/dashboards/keypool.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let of_panels = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
    let mut queries: Vec<_> = of_panels.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    let alerts = read("deploy/prometheus/alerts.yml");
    let of_alerts: Vec<_> = alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).collect();
    assert_eq!(of_alerts.len(), alerts.matches("- alert: ").count());
    queries.extend(of_alerts.into_iter().map(str::to_owned));
    queries
}

#[rstest]
#[tokio::test]
async fn every_panel_and_every_alert_asks_for_metrics_that_there_are(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let server = TestServer::start(db).await;
    let (alice, bob) =
        (server.anyone().registered("alice", "laptop").await, server.anyone().registered("bob", "phone").await);
    alice.uploaded(&[Device::new("alice", "laptop").key_package()]).await;
    bob.reserved("alice").await;
    let metrics = server.anyone().get("/metrics").await.text;
    // By name, the labels that its series have; those of Prometheus itself come with the scrape.
    let mut known: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::from([("up", BTreeSet::new())]);
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = line.split_once(['{', ' ']).unwrap();
        let labels = labels.split("=\"").map(|label| label.rsplit([',', '"', '{']).next().unwrap());
        known.entry(name).or_default().extend(labels);
    }
    for query in queries() {
        let mut found = BTreeMap::new();
        selected(&parse(&query).unwrap_or_else(|error| panic!("{query}: {error}")), &mut found);
        assert!(!found.is_empty(), "{query}");
        for (name, labels) in found {
            let there = known.get(name.as_str()).unwrap_or_else(|| panic!("{query}: there is no {name}"));
            for label in labels.iter().filter(|label| !["job", "instance"].contains(&label.as_str())) {
                assert!(there.contains(label.as_str()), "{query}: {name} has no label {label}: {there:?}");
            }
        }
    }
}

#[test]
fn what_can_be_set_in_env_is_what_compose_takes_with_its_defaults() {
    let compose = read("docker-compose.yml");
    let mut taken = BTreeMap::new();
    for part in compose.split("${").skip(1) {
        let reference = part.split_once('}').unwrap().0;
        // A required variable has no default. The header speaks of `${…}`.
        let required = reference.split_once(":?").map(|(name, _)| (name, ""));
        let Some((name, default)) = required.or_else(|| reference.split_once(":-")) else { continue };
        let before = taken.insert(name, default);
        assert!(before.is_none_or(|before| before == default), "{name} has two defaults");
    }
    let example = read(".env.example");
    let listed = example.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='));
    // Settings that compose passes on as they are: without a value, the server's default holds.
    let passed = passed_settings(&compose);
    let (settings, listed): (Vec<_>, Vec<_>) = listed.partition(|(name, _)| passed.contains(name));
    assert_eq!(taken, listed.into_iter().collect());
    assert!(settings.iter().all(|(_, value)| value.is_empty()) && settings.len() > 2, "{settings:?}");
}

/// The items of docker-compose.yml's lists, such as its volumes and ports, without quotes.
fn items(compose: &str) -> Vec<&str> {
    let lists = compose
        .lines()
        .map(str::trim)
        .filter_map(|line| line.strip_prefix("- ").or_else(|| line.split_once(": [")?.1.strip_suffix(']')));
    lists.map(|item| item.trim_matches('"')).collect()
}

/// The files of the repository that docker-compose.yml mounts, by their place in the container.
fn mounts(compose: &str) -> BTreeMap<&str, &str> {
    let of_repository = items(compose).into_iter().filter(|item| item.starts_with("./"));
    of_repository
        .map(|item| item.strip_suffix(":ro").and_then(|item| item.rsplit_once(':')).expect(item))
        .map(|(here, there)| (there, here))
        .collect()
}

#[test]
fn compose_mounts_what_is_there_and_publishes_to_this_machine_alone() {
    let compose = read("docker-compose.yml");
    let mounts = mounts(&compose);
    assert!(mounts.len() >= 5, "{mounts:?}");
    for here in mounts.values() {
        assert!(repository().join(here).exists(), "docker-compose.yml mounts {here}, which is not there");
    }
    let ports: Vec<_> = items(&compose).into_iter().filter(|item| item.contains("PUBLISH")).collect();
    assert!(ports.len() >= 4, "{ports:?}");
    for port in ports {
        assert!(port.contains(":-127.0.0.1:"), "{port}");
    }
}

/// Prometheus scrapes services that there are; Grafana finds Prometheus, and its dashboards.
#[test]
fn what_is_mounted_names_services_and_paths_of_compose() {
    let compose = read("docker-compose.yml");
    let is_service = |name: &str| compose.contains(&format!("\n  {name}:\n"));
    let text_after = |path: &str, before: &str, end: &[char]| {
        let text = read(path);
        text.split_once(before).unwrap().1.split(end).next().unwrap().to_owned()
    };
    let scraped = text_after("deploy/prometheus/prometheus.yml", "names: [", &[']']);
    assert!(scraped.split(", ").all(is_service), "{scraped}");
    let provisioning = "deploy/grafana/provisioning";
    let prometheus = text_after(&format!("{provisioning}/datasources/prometheus.yml"), "url: http://", &[':', '\n']);
    assert!(is_service(&prometheus), "{prometheus}");
    let dashboards = text_after(&format!("{provisioning}/dashboards/keypool.yml"), "path: ", &['\n']);
    let mounts = mounts(&compose);
    assert!(repository().join(mounts[&*dashboards]).join("keypool.json").exists(), "{dashboards}");
    for kind in ["dashboards", "datasources"] {
        assert_eq!(mounts[&*format!("/etc/grafana/provisioning/{kind}")], format!("./{provisioning}/{kind}"));
    }
    assert!(repository().join(mounts["/etc/prometheus"]).join("prometheus.yml").exists());
}

/// No deployment has a password that others know.
#[test]
fn every_deployment_has_passwords_of_its_own() {
    let compose = read("docker-compose.yml");
    for line in compose.lines().filter(|line| line.contains("PASSWORD: ")) {
        assert!(line.contains(":?"), "{line}");
    }
    let passwords = [(); 2].map(|()| {
        let directory = tempfile::tempdir().unwrap();
        fs::copy(repository().join(".env.example"), directory.path().join(".env.example")).unwrap();
        let make =
            || Command::new(repository().join("deploy/make-env")).current_dir(directory.path()).output().unwrap();
        assert!(make().status.success());
        let file = directory.path().join(".env");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(&file).unwrap();
        // An existing file is not replaced: the database has the password that it was made with.
        assert!(!make().status.success());
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
        ["POSTGRES_PASSWORD=", "GRAFANA_PASSWORD="].map(value)
    });
    let different: BTreeSet<_> = passwords.iter().flatten().collect();
    assert!(different.len() == 4 && different.iter().all(|password| password.len() == 48), "{passwords:?}");
}

/// The texts of all `tracing::warn!` in a source.
fn warnings(source: &str) -> Vec<String> {
    let text = |call: &str| {
        // The text is the last of the arguments.
        let quotes = || call.match_indices('"').map(|(at, _)| at);
        let ends = |at: &usize| {
            let rest = call[at + 1..].trim_start();
            [");", "),\n", ")\n"].iter().any(|end| rest.starts_with(end))
        };
        let end = quotes().find(ends).unwrap();
        let begin = quotes().take_while(|at| *at < end).fold(0, |_, at| at);
        call[begin + 1..end].to_owned()
    };
    source.split("tracing::warn!(").skip(1).map(text).collect()
}

/// The text that goes with the image lists the crates that the two programs are made of, and no others. It leaves out what
/// runs in the compiler alone.
#[test]
fn the_licenses_of_the_image_are_current() {
    let packages = ["--package", "keypool-server", "--package", "keypool-cli"];
    let tree = cargo()
        .args(["tree", "--locked", "--edges", "normal,no-proc-macro", "--prefix", "none", "--target", TARGET])
        .args(packages)
        .current_dir(repository())
        .output()
        .unwrap();
    let tree = String::from_utf8(tree.stdout).unwrap();
    let used: BTreeSet<_> = tree
        .lines()
        .filter_map(|line| line.split_once(" v"))
        .map(|(name, rest)| format!("{name} {}", rest.split(' ').next().unwrap()))
        .filter(|one| !one.starts_with("keypool-"))
        .collect();
    let (text, lock) = (read("LICENSES-THIRD-PARTY.txt"), read("Cargo.lock"));
    let header = text.split("=====").next().unwrap();
    let listed: BTreeSet<_> = header
        .lines()
        .filter_map(|line| line.strip_prefix("* ")?.split_once(": "))
        .map(|(one, _)| one.to_owned())
        .collect();
    let how = "cargo about generate --locked --workspace about.hbs > LICENSES-THIRD-PARTY.txt";
    let missing: Vec<_> = used.difference(&listed).collect();
    assert!(missing.is_empty() && used.len() > 100, "{missing:?} are not in LICENSES-THIRD-PARTY.txt: {how}");
    for one in &listed {
        let (name, version) = one.split_once(' ').unwrap();
        assert!(
            lock.contains(&format!("name = \"{name}\"\nversion = \"{version}\"\n")),
            "{one} is not used any more: {how}"
        );
    }
}

/// The gate, the hosted runner and the `justfile` have the same steps.
#[test]
fn every_step_of_the_gate_runs_on_the_hosted_runner_and_none_is_unknown() {
    let steps = output(Command::new(repository().join(".ci/run")).arg("--list"));
    let steps: BTreeSet<_> = steps.lines().collect();
    let workflow = read(".github/workflows/ci.yml");
    let matrix = workflow.lines().find_map(|line| line.trim().strip_prefix("steps: [")?.strip_suffix(']')).unwrap();
    assert_eq!(matrix.split([' ', ',']).filter(|step| !step.is_empty()).collect::<BTreeSet<_>>(), steps);
    let (justfile, page) = (read("justfile"), read("docs/development.md"));
    let commands: Vec<_> = justfile
        .lines()
        .map(str::trim)
        .chain(page.split('`'))
        .filter_map(|text| text.strip_prefix(".ci/run "))
        .collect();
    assert!(commands.len() > 3, "{commands:?}");
    for step in commands.into_iter().flat_map(str::split_whitespace).filter(|word| !word.starts_with('-')) {
        assert!(steps.contains(step), "{step} is no step of .ci/run: {steps:?}");
    }
}

/// The dependencies that a build of some packages compiles, each with its features.
fn compiled(selection: &[&str]) -> BTreeSet<String> {
    let tree = output(
        cargo()
            .args(["tree", "--locked", "--target", TARGET, "--prefix", "none"])
            .args(["--no-dedupe", "--format", "{p} with {f}"])
            .args(selection)
            .current_dir(repository()),
    );
    tree.lines().filter(|line| !line.starts_with("keypool-")).map(str::to_owned).collect()
}

/// One build of a dependency serves the tests, the image and a build of one program: that saves minutes each time.
#[test]
fn a_program_alone_is_built_from_the_dependencies_of_the_whole_workspace() {
    let workspace = compiled(&["--workspace", "--edges", "normal,build,dev"]);
    assert!(workspace.len() > 300, "{}", workspace.len());
    // The server has SQLite where the client has SQLCipher; a test has more of chrono than the client.
    for (package, own) in [("keypool-server", "libsqlite3-sys "), ("keypool-cli", "chrono ")] {
        let alone = compiled(&["--package", package, "--edges", "normal,build"]);
        let again: Vec<_> = alone.difference(&workspace).filter(|line| !line.starts_with(own)).collect();
        assert!(again.is_empty(), "{package} alone builds these again: run `cargo hakari generate`: {again:?}");
    }
}

/// What the guide for embedders says of the weight of the library.
#[test]
fn the_library_has_as_many_crates_as_its_guide_says() {
    let guide = read("docs/keypackage-pool-implementation.md");
    let none = "--no-default-features";
    for (features, arguments) in [
        ("none", vec![none]),
        ("`http`", vec![none, "--features", "http"]),
        ("`sqlite`", vec![none, "--features", "sqlite"]),
        ("`http`, `sqlite`: the default", vec![]),
    ] {
        let tree = output(
            cargo()
                .args(["tree", "--locked", "--target", TARGET, "--package", "keypool-client", "--prefix", "none"])
                .args(["--no-dedupe", "--edges", "normal,no-proc-macro"])
                .args(arguments)
                .current_dir(repository()),
        );
        let crates: BTreeSet<_> = tree.lines().collect();
        let row = format!("| {features} | {} |", crates.len());
        assert!(guide.contains(&row), "docs/keypackage-pool-implementation.md does not say {row}");
    }
}

/// The page for operators explains every alert and every warning.
#[test]
fn the_operations_page_explains_every_alert_and_every_warning() {
    let (alerts, page) = (read("deploy/prometheus/alerts.yml"), read("docs/operations.md"));
    for name in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(page.contains(&format!("`{name}`")), "docs/operations.md does not explain {name}");
    }
    let sources = texts(&repository().join("server/src"), &["rs"]);
    let warnings: Vec<_> = sources.iter().flat_map(|(_, source)| warnings(source)).collect();
    assert!(warnings.len() >= 10, "{warnings:?}");
    for line in warnings {
        let words = line.split(['{', ':', ';', '\\']).map(str::trim).find(|part| part.len() > 8).unwrap();
        assert!(page.contains(words), "docs/operations.md does not explain the warning: {line}");
    }
}

/// The settings that docker-compose.yml passes on to the servers.
fn passed_settings(compose: &str) -> BTreeSet<&str> {
    let (_, after) = compose.split_once("x-settings: &settings\n").unwrap();
    after.lines().map_while(|line| line.strip_prefix("  ")?.strip_suffix(':')).collect()
}

/// A line of `.env` that looks like a setting is one: only what compose itself decides is left out.
#[test]
fn every_setting_in_the_env_file_reaches_the_servers() {
    let compose = read("docker-compose.yml");
    let passed = passed_settings(&compose);
    let mut settings: BTreeSet<_> = Config::variables().into_iter().collect();
    for decided in ["KEYPOOL_LISTEN", "KEYPOOL_DATABASE_URL", "KEYPOOL_LOG_KEY"] {
        assert!(settings.remove(decided), "{decided} is no setting");
    }
    settings.extend(["KEYPOOL_ADMIN_TOKEN_FILE", "KEYPOOL_DATABASE_URL_FILE"].map(str::to_owned));
    assert_eq!(passed, settings.iter().map(String::as_str).collect());
    assert_eq!(compose.matches("      <<: *settings\n").count(), 2, "the servers on PostgreSQL, and the one on SQLite");
}
