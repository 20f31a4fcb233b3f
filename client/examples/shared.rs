//! A web server and a pool of threads that use one client: `cargo run --example shared -- DATA_DIR`.
//!
//! `POST /GROUP` sends its body to the group, and `GET /` shows the status of the device's pool. Meanwhile, threads look at the
//! groups, and the main task receives messages.

#![expect(clippy::print_stdout, reason = "an example says what it does")]

use std::{env, error::Error, path::Path, sync::mpsc, thread};

use axum::{
    Json, Router,
    extract::{Path as PathOf, State},
    http::StatusCode,
    routing::{get, post},
};
use keypool_client::{MlsClient, wire::PoolStatus};

/// What a handler answers where the client fails.
type Failure = (StatusCode, String);

#[expect(clippy::needless_pass_by_value, reason = "map_err passes it by value")]
fn failure(error: keypool_client::Error) -> Failure {
    (StatusCode::BAD_GATEWAY, error.with_causes())
}

async fn status(State(client): State<MlsClient>) -> Result<Json<PoolStatus>, Failure> {
    client.status().await.map(Json).map_err(failure)
}

async fn send(State(client): State<MlsClient>, PathOf(name): PathOf<String>, text: String) -> Result<String, Failure> {
    let group = client.membership().find_group(&name).map_err(failure)?;
    let undelivered = client.membership().send(&group.group_id, &text).await.map_err(failure)?;
    Ok(format!("sent; {} devices could not get it\n", undelivered.len()))
}

/// Threads without a runtime, which use what needs no server.
fn threads(client: &MlsClient) -> mpsc::Receiver<String> {
    let (found, all) = mpsc::channel();
    for number in 0..4 {
        let (client, found) = (client.clone(), found.clone());
        thread::spawn(move || {
            let groups = client.membership().groups();
            let said = groups.map_or_else(|error| error.with_causes(), |groups| format!("{} groups", groups.len()));
            let _ = found.send(format!("thread {number} sees {said}"));
        });
    }
    all
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let data_dir = env::args().nth(1).ok_or("give DATA_DIR")?;
    let client = MlsClient::open(Path::new(&data_dir))?;
    for said in threads(&client) {
        println!("{said}");
    }
    let router = Router::new().route("/", get(status)).route("/{group}", post(send)).with_state(client.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on http://{}", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, router).await });
    loop {
        client.refresh_key_packages(&|_| {}).await?;
        let membership = client.membership();
        let incoming = membership.receive(30).await?;
        for one in &incoming {
            println!("{:?}", one.event);
        }
        membership.done(&incoming)?;
    }
}
