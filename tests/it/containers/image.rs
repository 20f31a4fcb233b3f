//! The image: small, nobody's root, and with nothing in it that is not needed.

use std::{process::Command, time::Instant};

use serde_json::Value;

use crate::support::{
    PATIENCE,
    compose::{Compose, docker},
};

const MEGABYTE: u64 = 1_000_000;

fn inspected(what: &str) -> Value {
    serde_json::from_str::<Value>(&docker(&["inspect", what])).unwrap()[0].take()
}

#[test]
#[ignore = "needs containers"]
fn the_image_is_small_and_has_three_programs_and_their_licenses() {
    let image = inspected("keypool");
    assert!(image["Size"].as_u64().unwrap() < 150 * MEGABYTE, "{} bytes", image["Size"]);
    assert_eq!(image["Config"]["User"], "10001:10001");
    assert_eq!(image["Config"]["Healthcheck"]["Test"][1], "keypool-server");
    assert_eq!(image["Config"]["Labels"]["org.opencontainers.image.licenses"], "MIT OR Apache-2.0");
    let container = docker(&["create", "keypool"]).trim().to_owned();
    let listing = Command::new("sh").args(["-c", &format!("docker export {container} | tar -t")]).output().unwrap();
    docker(&["rm", &container]);
    let files = String::from_utf8(listing.stdout).unwrap();
    let within = |folder: &str| -> Vec<_> {
        files.lines().filter_map(|file| file.strip_prefix(folder)).filter(|file| !file.is_empty()).collect()
    };
    assert_eq!(within("usr/local/bin/"), ["keypool", "keypool-server", "keypool-verify"]);
    assert_eq!(within("usr/share/doc/keypool/"), ["LICENSE-APACHE", "LICENSE-MIT", "LICENSES-THIRD-PARTY.txt"]);
    assert!(!files.lines().any(|file| file.ends_with("bin/sh") || file.ends_with("bin/bash")), "there is a shell");
}

#[tokio::test]
#[ignore = "needs containers"]
async fn a_container_that_cannot_write_but_to_its_volume_serves_and_ends_well() {
    let deployment = Compose::up("image", &["sqlite"]);
    deployment.ready().await;
    let container = deployment.containers("sqlite").remove(0);
    let host = &inspected(&container)["HostConfig"];
    assert_eq!((&host["ReadonlyRootfs"], &host["CapDrop"][0]), (&true.into(), &"ALL".into()));
    let patience = Instant::now() + PATIENCE;
    while inspected(&container)["State"]["Health"]["Status"] != "healthy" {
        assert!(Instant::now() < patience, "its own health check does not find it well");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    docker(&["stop", "--time", "40", &container]);
    assert_eq!(inspected(&container)["State"]["ExitCode"], 0, "{}", docker(&["logs", &container]));
}
