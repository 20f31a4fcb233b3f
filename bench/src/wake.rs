//! The time from a message at one server to the recipient that waits at another one.

use std::time::Instant;

use anyhow::{Context, Result};
use keypool_client::{CIPHERSUITE, MlsClient, NewDevice, Settings};

use crate::{progress, report::Waits};

pub(crate) async fn measure(server: &str, other: &str, rounds: u32) -> Result<Waits> {
    let place = tempfile::tempdir()?;
    let run = std::process::id();
    let device = async |user: String, server: &str| {
        let new = NewDevice {
            server: server.to_owned(),
            user: user.parse()?,
            device: "bench".parse()?,
            user_token: None,
            ciphersuites: vec![CIPHERSUITE],
        };
        let made = MlsClient::init(&place.path().join(&user), &new, Settings::default(), &|_| {}).await;
        Ok::<_, anyhow::Error>(made.with_context(|| format!("is there a server at {server}?"))?.0)
    };
    let sender = device(format!("sender-{run}"), server).await?;
    let receiver = device(format!("receiver-{run}"), other).await?;
    let group = sender.membership().create_named_group("bench")?;
    sender.membership().invite(&group.group_id, &[format!("receiver-{run}").parse()?]).await?;
    receiver.membership().done(&receiver.membership().receive(10).await?)?;
    let bar = progress::bar(rounds.into(), "messages")?;
    let mut waits = Vec::new();
    for round in 0..rounds {
        let text = round.to_string();
        let (sending, receiving) = (sender.membership(), receiver.membership());
        let waiting = async {
            let came = receiving.receive(30).await?;
            let woken = Instant::now();
            receiving.done(&came)?;
            Ok::<_, keypool_client::Error>(woken)
        };
        let saying = async {
            // By then the recipient waits.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            sending.send(&group.group_id, &text).await?;
            Ok::<_, keypool_client::Error>(Instant::now())
        };
        let (woken, sent) = tokio::try_join!(waiting, saying)?;
        waits.push(woken.saturating_duration_since(sent));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(Waits::of(&waits))
}
