//! The output of the command: text for people, or JSON for programs.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use clap::builder::styling::AnsiColor;
use indicatif::{ProgressBar, ProgressStyle};
use keypool_client::{
    DeviceIdentity, Group, Incoming, Invited, LogState, MembershipChange, Progress, RefreshReport, Removed, Renewed,
    SafetyNumber, TrailCheck,
};
use keypool_openapi::{
    AuditPage, Device, DeviceName, DeviceOf, InventoryItem, PoolStatus, ReleaseResponse, RemovedDevice,
    ReserveResponse, RevokeResponse, SpendResponse, Undelivered,
};
use serde::Serialize;
use serde_json::json;

use crate::{
    answers::{Done, Exported, Failure, LinkedDevice, NewToken, ServerAddress, Token, Trail},
    colour::{painted, warning},
    doctor::Check,
    error::{Error, Result},
    incoming::{self, Place},
    log_text::{exported_text, log_text, trail_text},
    schema,
    sentences::{
        check_text, health_text, invited_text, names, refresh_text, renewed_text, safety_number_text, status_text,
        undelivered_text,
    },
    tables,
    text::{argument, clean, show_turning},
};

/// What a person reads when this device has a new token.
const TOKEN_SET: &str = "This device uses the new token.";

/// The output of the command: text for people, or JSON for programs.
pub struct Output {
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether the output is JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    pub fn initialised(&self, identity: &DeviceIdentity, report: &RefreshReport) -> Result<()> {
        self.answer(report, || {
            format!("{} is registered at {}.\n{}", identity.identity(), identity.server(), refresh_text(report))
        })
    }

    /// Warns that others can listen on the way to the server.
    pub fn warn_of_clear_text(server: &str) {
        let found = format!(
            "anyone on the network path to {} can read this device's token and act as the device. Use https:// if the \
             server has it.",
            clean(server)
        );
        let _ = writeln!(anstream::stderr(), "{}", warning(&found));
    }

    pub fn refreshed(&self, report: &RefreshReport) -> Result<()> {
        self.answer(report, || refresh_text(report))
    }

    pub fn status(&self, status: &PoolStatus) -> Result<()> {
        self.answer(status, || status_text(status))
    }

    pub fn reserved(&self, answer: &ReserveResponse) -> Result<()> {
        self.answer(answer, || tables::text(tables::reservations(answer)))
    }

    pub fn inventory(&self, items: &[InventoryItem]) -> Result<()> {
        self.answer(&items, || match items {
            [] => "The server has no KeyPackages of this device; `keypool refresh` uploads some.".to_owned(),
            items => tables::text(tables::inventory(items)),
        })
    }

    pub fn audit(&self, page: AuditPage) -> Result<()> {
        let page = Trail::from(page);
        self.answer(&page, || {
            let more = page.next.map(|next| format!("\nThere is more: keypool audit --before {next}"));
            match page.events.as_slice() {
                [] => "There are no events yet.".to_owned(),
                events => tables::text(tables::events(events)) + &more.unwrap_or_default(),
            }
        })
    }

    pub fn trail_checked(&self, checks: &[TrailCheck]) -> Result<()> {
        self.answer(&checks, || trail_text(checks))
    }

    pub fn log_state(&self, state: &LogState) -> Result<()> {
        self.answer(state, || log_text(state))
    }

    pub fn exported(&self, exported: &Exported) -> Result<()> {
        self.answer(exported, || exported_text(exported))
    }

    pub fn revoked(&self, answer: &RevokeResponse) -> Result<()> {
        self.answer(answer, || {
            let mut text = format!("{} KeyPackages are revoked.", answer.revoked.len());
            for ended in &answer.ended {
                let _ = write!(text, "\n{} is {} already.", ended.keypackage_ref, ended.state);
            }
            for unknown in &answer.unknown {
                let _ = write!(text, "\n{unknown} is not a KeyPackage of this device.");
            }
            text + "\n" + &health_text(&answer.pool)
        })
    }

    /// The result of a call that sends something to a group: a sentence, and the devices that it did not reach.
    pub fn delivered(&self, sentence: &str, undelivered: &[Undelivered]) -> Result<()> {
        self.answer(&Done { done: true, undelivered: undelivered.to_vec() }, || {
            sentence.to_owned() + &undelivered_text(undelivered)
        })
    }

    pub fn group_created(&self, group: &Group) -> Result<()> {
        self.answer(group, || {
            let (name, quoted) = (&group.name, argument(&group.name));
            format!("The group {name} is created; `keypool group invite {quoted} USER` adds a user.")
        })
    }

    pub fn groups(&self, groups: &[Group]) -> Result<()> {
        self.answer(&groups, || match groups {
            [] => "This device is in no group; `keypool group create NAME` creates one.".to_owned(),
            groups => tables::text(tables::groups(groups)),
        })
    }

    pub fn invited(&self, group: &Group, invited: &Invited) -> Result<()> {
        self.answer(invited, || invited_text(group, invited))
    }

    pub fn renewed(&self, renewed: &Renewed) -> Result<()> {
        self.answer(renewed, || renewed_text(renewed))
    }

    pub fn removed(&self, group: &Group, removed: &Removed) -> Result<()> {
        self.answer(removed, || {
            let warnings = undelivered_text(&removed.undelivered);
            format!("{} removed from {}.{warnings}", names(&removed.removed), group.name)
        })
    }

    pub fn members(&self, members: &[DeviceOf]) -> Result<()> {
        self.answer(&members, || members.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    pub fn history(&self, changes: &[MembershipChange]) -> Result<()> {
        self.answer(&changes, || tables::text(tables::history(changes)))
    }

    /// Fails if it could not be printed, so that the caller keeps the items.
    pub fn received(&self, groups: &[Group], incoming: &[Incoming]) -> io::Result<()> {
        let lines = |one: &Incoming| {
            let group = incoming::group_name(groups, one);
            let lines = incoming::lines(one, Place::Shell { group: &group }).into_iter();
            let place = if group.is_empty() { String::new() } else { format!(" [{group}]") };
            lines.map(|line| format!("{}{place} {line}", one.sent_at)).collect::<Vec<_>>()
        };
        self.print(&incoming, || match incoming {
            [] => "There is nothing new.".to_owned(),
            incoming => incoming.iter().flat_map(lines).collect::<Vec<_>>().join("\n"),
        })
    }

    pub fn doctor(&self, checks: &[Check]) -> Result<()> {
        self.answer(&checks, || checks.iter().map(check_text).collect::<Vec<_>>().join("\n"))
    }

    pub fn spent(&self, answer: &SpendResponse) -> Result<()> {
        self.answer(answer, || {
            format!("KeyPackage {} was {} at {}.", answer.keypackage_ref, answer.state, answer.spent_at)
        })
    }

    pub fn safety_number(&self, number: &SafetyNumber) -> Result<()> {
        self.answer(number, || safety_number_text(number))
    }

    pub fn released(&self, answer: &ReleaseResponse) -> Result<()> {
        self.answer(answer, || format!("KeyPackage {} is {} now.", answer.keypackage_ref, answer.state))
    }

    pub fn devices(&self, own: &DeviceName, devices: &[Device]) -> Result<()> {
        self.answer(&devices, || tables::text(tables::devices(own, devices)))
    }

    /// The code for a further device; `waits`: the command goes on until a device has used it.
    pub fn link_made(
        &self,
        identity: &DeviceIdentity,
        made: &LinkedDevice,
        picture: Option<&str>,
        waits: bool,
    ) -> Result<()> {
        self.answer(made, || {
            let code = made.code.as_deref().unwrap_or_default();
            let (server, user) = (argument(identity.server()), argument(identity.user().as_str()));
            let mut text = format!(
                "Run this on the new device by {}:\n\n  keypool init --server {server} --user {user} --device NAME --link {code}\n",
                made.expires_at
            );
            if let Some(picture) = picture {
                let _ = write!(text, "\nOr read this picture there, for `keypool init --link`:\n\n{picture}\n");
            }
            if waits {
                text += "\nWaiting for the new device. Ctrl-C ends the wait; the code stays valid.";
            }
            text.trim_end().to_owned()
        })
    }

    /// The device that was registered with the code.
    pub fn device_linked(&self, linked: &LinkedDevice) -> Result<()> {
        self.answer(linked, String::new)
    }

    pub fn device_removed(&self, removed: &RemovedDevice) -> Result<()> {
        self.answer(removed, || {
            format!(
                "{}/{} is removed, and {} of its KeyPackages are revoked. Other members still have to remove it from its \
                 groups.",
                removed.user, removed.device, removed.revoked
            )
        })
    }

    /// The result of a call that changes nothing but this device.
    pub fn done(&self, sentence: &str) -> Result<()> {
        self.delivered(sentence, &[])
    }

    pub fn token(&self, token: &str) -> Result<()> {
        self.answer(&Token { token: token.to_owned() }, || token.to_owned())
    }

    /// A device's new token; `None` if this device uses it.
    pub fn token_rotated(&self, device: &DeviceName, token: Option<&str>) -> Result<()> {
        let answer = NewToken { device: device.clone(), token: token.map(str::to_owned) };
        self.answer(&answer, || token.unwrap_or(TOKEN_SET).to_owned())
    }

    pub fn token_set(&self) -> Result<()> {
        self.done(TOKEN_SET)
    }

    pub fn server(&self, server: &str) -> Result<()> {
        self.answer(&ServerAddress { server: server.to_owned() }, || server.to_owned())
    }

    pub fn schema() -> Result<()> {
        Self::new(true).answer(&schema::document(), String::new)
    }

    pub fn error(&self, error: &Error) {
        let message = error.with_causes();
        self.failure(&message, error.code(), error.hint());
    }

    pub fn usage(&self, usage: &clap::Error) {
        let text = usage.to_string();
        // The first paragraph: it may list arguments, one in a line.
        let message = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
        self.failure(message.trim_start_matches("error: "), Some("usage"), Some("see `keypool --help`"));
    }

    fn failure(&self, message: &str, code: Option<&str>, hint: Option<&str>) {
        let text = if self.json {
            let kind = code.map(str::to_owned);
            let failure = Failure { error: message.to_owned(), kind, hint: hint.map(str::to_owned) };
            serde_json::to_string(&failure).unwrap_or_else(|error| error.to_string())
        } else {
            let error = painted("error", AnsiColor::Red);
            let hint = hint.map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
            // The message may contain text from the server or a proxy.
            format!("{error}: {}{hint}", clean(message))
        };
        // If stderr is closed, the exit code still reports the error.
        let _ = writeln!(anstream::stderr(), "{text}");
    }

    /// Runs a refresh with a progress bar on a terminal.
    pub async fn with_progress<F: Future>(&self, call: impl FnOnce(Box<dyn Fn(Progress) + Sync>) -> F) -> F::Output {
        let bar = if self.json { ProgressBar::hidden() } else { ProgressBar::new(0) };
        if let Ok(style) = ProgressStyle::with_template("{msg:>10} [{bar:32}] {pos}/{len}") {
            bar.set_style(style.progress_chars("=> "));
        }
        let drawn = bar.clone();
        let output = call(Box::new(move |progress| {
            let (message, done, total) = match progress {
                Progress::Generated { done, total } => ("Generating", done, total),
                Progress::Uploaded { done, total } => ("Uploading", done, total),
                Progress::Compared { done, total } => ("Comparing", done, total),
            };
            drawn.set_message(message);
            drawn.set_length(u64::try_from(total).unwrap_or(u64::MAX));
            drawn.set_position(u64::try_from(done).unwrap_or(u64::MAX));
        }))
        .await;
        bar.finish_and_clear();
        output
    }

    fn answer(&self, answer: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        self.print(answer, text).or_else(unless_closed)
    }

    fn print(&self, answer: &impl Serialize, text: impl FnOnce() -> String) -> io::Result<()> {
        let text = if self.json {
            serde_json::to_string_pretty(answer)
                .unwrap_or_else(|error| json!({ "error": error.to_string() }).to_string())
        } else {
            show_turning(&text())
        };
        let mut stdout = anstream::stdout();
        writeln!(stdout, "{text}")?;
        stdout.flush()
    }
}

/// Prints text that is the same for people and for programs.
pub fn print_raw(text: &[u8]) -> Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(text).and_then(|()| stdout.flush()).or_else(unless_closed)
}

/// Prints the help or the version that somebody asked for.
pub fn print_help(help: &clap::Error) -> Result<()> {
    help.print().and_then(|()| io::stdout().flush()).or_else(unless_closed)
}

/// If the reader closed the pipe, it needs no more output. Any other error, such as a full disk, is one of the command.
fn unless_closed(source: io::Error) -> Result<()> {
    if source.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(Error::Unwritten { source }) }
}
