use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use clap::builder::styling::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};
use keypool_openapi::{
    AuditPage, DeviceOf, Health, InventoryItem, PoolStatus, ReleaseResponse, ReserveResponse, RevokeResponse,
    SpendResponse, Undelivered, UndeliveredReason,
};
use serde::Serialize;
use serde_json::json;

use super::{
    incoming::{self, Place},
    tables,
};
use crate::{
    doctor::{Check, Verdict},
    error::Error,
    mls::{DeviceIdentity, Group, Incoming, Invited, Progress, RefreshReport, Removed, Renewed, SafetyNumber, clean},
};

const BAR_WIDTH: usize = 32;

/// All that the command prints: for people, or as JSON for programs.
pub(super) struct Output {
    json: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether a program reads it.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    pub(super) fn initialised(&self, identity: &DeviceIdentity, report: &RefreshReport) {
        self.answer(report, || {
            format!("{} is registered at {}.\n{}", identity.identity(), identity.server(), refresh_text(report))
        });
    }

    /// The server's address is one at which others can listen.
    pub(super) fn is_in_the_clear(server: &str) {
        let warning = painted("warning", AnsiColor::Yellow);
        let server = clean(server);
        let _ = writeln!(
            anstream::stderr(),
            "{warning}: anyone on the network path to {server} can read this device's token and act as the device. Use https:// \
             if the server has it."
        );
    }

    pub(super) fn refreshed(&self, report: &RefreshReport) {
        self.answer(report, || refresh_text(report));
    }

    pub(super) fn status(&self, status: &PoolStatus) {
        self.answer(status, || status_text(status));
    }

    pub(super) fn reserved(&self, answer: &ReserveResponse) {
        self.answer(answer, || tables::reservations(answer));
    }

    pub(super) fn inventory(&self, items: &[InventoryItem]) {
        self.answer(&items, || match items {
            [] => "The server knows of no KeyPackage of this device; `keypool refresh` makes some.".to_owned(),
            items => tables::inventory(items),
        });
    }

    pub(super) fn audit(&self, page: &AuditPage) {
        self.answer(page, || {
            let more = page.next.map(|next| format!("\nThere is more: keypool audit --before {next}"));
            match page.events.as_slice() {
                [] => "Nothing has happened yet.".to_owned(),
                events => tables::events(events) + &more.unwrap_or_default(),
            }
        });
    }

    pub(super) fn revoked(&self, answer: &RevokeResponse) {
        self.answer(answer, || {
            let mut text = format!("{} KeyPackages are withdrawn.", answer.revoked.len());
            for ended in &answer.ended {
                let _ = write!(text, "\n{} is {} already.", ended.keypackage_ref, ended.state);
            }
            for unknown in &answer.unknown {
                let _ = write!(text, "\n{unknown} is none of this device's.");
            }
            text + "\n" + &health_text(&answer.pool)
        });
    }

    /// What went to the members of a group: one sentence for people, for programs that it is done, and whom it did not
    /// reach.
    pub(super) fn delivered(&self, sentence: &str, undelivered: &[Undelivered]) {
        self.answer(&json!({ "done": true, "undelivered": undelivered }), || {
            sentence.to_owned() + &undelivered_text(undelivered)
        });
    }

    pub(super) fn group_created(&self, group: &Group) {
        self.answer(group, || {
            format!("The group {} is there; `keypool group invite {0:?} USER` adds somebody.", group.name)
        });
    }

    pub(super) fn groups(&self, groups: &[Group]) {
        self.answer(&groups, || match groups {
            [] => "This device is in no group; `keypool group create NAME` makes one.".to_owned(),
            groups => tables::groups(groups),
        });
    }

    pub(super) fn invited(&self, group: &Group, invited: &Invited) {
        self.answer(invited, || invited_text(group, invited));
    }

    pub(super) fn renewed(&self, renewed: &Renewed) {
        self.answer(renewed, || renewed_text(renewed));
    }

    pub(super) fn removed(&self, group: &Group, removed: &Removed) {
        self.answer(removed, || {
            let warnings = undelivered_text(&removed.undelivered);
            format!("{} removed from {}.{warnings}", names(&removed.removed), group.name)
        });
    }

    pub(super) fn members(&self, members: &[DeviceOf]) {
        self.answer(&members, || members.iter().map(name).collect::<Vec<_>>().join("\n"));
    }

    /// Answers whether it is out: what is printed is not kept anywhere else.
    pub(super) fn received(&self, groups: &[Group], incoming: &[Incoming]) -> io::Result<()> {
        let lines = |one: &Incoming| {
            let group = incoming::group_name(groups, one);
            let lines = incoming::lines(one, Place::Shell { group: &group }).into_iter();
            let place = if group.is_empty() { String::new() } else { format!(" [{group}]") };
            lines.map(|line| format!("{}{place} {line}", one.sent_at)).collect::<Vec<_>>()
        };
        self.print(&incoming, || match incoming {
            [] => "Nothing came.".to_owned(),
            incoming => incoming.iter().flat_map(lines).collect::<Vec<_>>().join("\n"),
        })
    }

    pub(super) fn doctor(&self, checks: &[Check]) {
        self.answer(&checks, || checks.iter().map(check_text).collect::<Vec<_>>().join("\n"));
    }

    pub(super) fn spent(&self, answer: &SpendResponse) {
        self.answer(answer, || {
            format!("KeyPackage {} is {} since {}.", answer.keypackage_ref, answer.state, answer.spent_at)
        });
    }

    pub(super) fn safety_number(&self, number: &SafetyNumber) {
        self.answer(number, || safety_number_text(number));
    }

    pub(super) fn released(&self, answer: &ReleaseResponse) {
        self.answer(answer, || format!("KeyPackage {} is {} now.", answer.keypackage_ref, answer.state));
    }

    pub(super) fn token(&self, token: &str) {
        self.answer(&json!({ "token": token }), || token.to_owned());
    }

    pub(super) fn error(&self, error: &Error) {
        let message = error.with_causes();
        let code = match error {
            Error::Refused { code, .. } => Some(code),
            _ => None,
        };
        self.failure(&message, code.map(String::as_str), error.hint());
    }

    pub(super) fn usage(&self, usage: &clap::Error) {
        let text = usage.to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        self.failure(message, Some("usage"), Some("see `keypool --help`"));
    }

    fn failure(&self, message: &str, code: Option<&str>, hint: Option<&str>) {
        let text = if self.json {
            json!({ "error": message, "type": code, "hint": hint }).to_string()
        } else {
            let error = painted("error", AnsiColor::Red);
            let hint = hint.map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
            // Servers, and what is in front of them, write into it as they like.
            format!("{error}: {}{hint}", clean(message))
        };
        // With stderr closed there is nobody to tell; the exit code still does.
        let _ = writeln!(anstream::stderr(), "{text}");
    }

    /// Runs a long call with a progress bar on a terminal.
    pub(super) async fn with_progress<F: Future>(&self, call: impl FnOnce(Box<dyn Fn(Progress)>) -> F) -> F::Output {
        let bar = if self.json { ProgressBar::hidden() } else { ProgressBar::new(0) };
        if let Ok(style) = ProgressStyle::with_template("{msg:>10} [{bar:32}] {pos}/{len}") {
            bar.set_style(style.progress_chars("=> "));
        }
        let drawn = bar.clone();
        let output = call(Box::new(move |progress| {
            let (message, done, total) = match progress {
                Progress::Generated { done, total } => ("Generating", done, total),
                Progress::Uploaded { done, total } => ("Uploading", done, total),
            };
            drawn.set_message(message);
            drawn.set_length(u64::try_from(total).unwrap_or(u64::MAX));
            drawn.set_position(u64::try_from(done).unwrap_or(u64::MAX));
        }))
        .await;
        bar.finish_and_clear();
        output
    }

    fn answer(&self, answer: &impl Serialize, text: impl FnOnce() -> String) {
        // A reader that closed the pipe has read enough.
        let _ = self.print(answer, text);
    }

    fn print(&self, answer: &impl Serialize, text: impl FnOnce() -> String) -> io::Result<()> {
        let text = if self.json {
            serde_json::to_string_pretty(answer)
                .unwrap_or_else(|error| json!({ "error": error.to_string() }).to_string())
        } else {
            text()
        };
        let mut stdout = anstream::stdout();
        writeln!(stdout, "{text}")?;
        stdout.flush()
    }
}

/// What failed, in one line.
pub(super) fn error_line(what: &str, error: &Error) -> String {
    format!("{}: {what}: {}", painted("error", AnsiColor::Red), clean(&error.with_causes()))
}

pub(super) fn invited_text(group: &Group, invited: &Invited) -> String {
    let mut text = match invited.added.as_slice() {
        [] => format!("Nobody was added to {}.", group.name),
        added => format!("{} added to {}.", names(added), group.name),
    };
    for missing in &invited.missing {
        let device = missing.device.as_ref().map_or_else(String::new, |device| format!("/{device}"));
        let _ = write!(
            text,
            "\n{}: {}{device} was not added: {}. When that device has refreshed its pool, invite again.",
            painted("warning", AnsiColor::Yellow),
            missing.user,
            missing.reason
        );
    }
    for notice in &invited.notices {
        let _ = write!(text, "\n{}", incoming::notice_line(notice));
    }
    text + &undelivered_text(&invited.undelivered)
}

pub(super) fn renewed_text(renewed: &Renewed) -> String {
    format!("{}\nThe old group of this name is read-only now.", invited_text(&renewed.group, &renewed.invited))
}

pub(super) fn safety_number_text(number: &SafetyNumber) -> String {
    let keys = number.keys.iter().map(|one| {
        let (suite, since) = (one.key.ciphersuite, one.key.since);
        format!("{}: ciphersuite {suite}, since {since}, {}", one.device, one.fingerprint)
    });
    format!("{}\n{}", number.number, keys.collect::<Vec<_>>().join("\n"))
}

/// A line for each device that something did not reach, after what is told before.
pub(super) fn undelivered_text(undelivered: &[Undelivered]) -> String {
    let line = |Undelivered { user, device, reason }: &Undelivered| {
        let why = match reason {
            UndeliveredReason::UnknownDevice => "the server knows no such device any more",
            UndeliveredReason::QueueFull => "its queue on the server is full",
        };
        format!("\n{}: it did not reach {user}/{device}: {why}.", painted("warning", AnsiColor::Yellow))
    };
    undelivered.iter().map(line).collect()
}

pub(super) fn name(DeviceOf { user, device }: &DeviceOf) -> String {
    format!("{user}/{device}")
}

pub(super) fn names(devices: &[DeviceOf]) -> String {
    devices.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// The text in a colour; `anstream` takes it out again where it does not belong.
pub(super) fn painted(text: &str, colour: AnsiColor) -> String {
    let style = Style::new().fg_color(Some(colour.into()));
    format!("{style}{text}{style:#}")
}

pub(super) fn refresh_text(report: &RefreshReport) -> String {
    let mut text = if report.changed_nothing() {
        "Nothing to do.".to_owned()
    } else {
        let steps = [
            ("removed", report.removed),
            ("reconciled", report.reconciled),
            ("withdrawn", report.revoked),
            ("generated", report.generated),
            ("uploaded", report.uploaded),
        ];
        let done = steps.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}"));
        format!("KeyPackages: {}.", done.collect::<Vec<_>>().join(", "))
    };
    let warnings = report.warnings.iter().map(ToString::to_string).chain(report.rejected.iter().map(|rejection| {
        format!(
            "the server refused KeyPackage {} as {}: {}",
            rejection.keypackage_ref, rejection.reason, rejection.detail
        )
    }));
    for warning in warnings {
        let _ = write!(text, "\n{}: {}", painted("warning", AnsiColor::Yellow), clean(&warning));
    }
    let _ = write!(text, "\n{}", health_text(&report.pool));
    text
}

fn check_text(check: &Check) -> String {
    let (mark, colour) = match check.verdict {
        Verdict::Ok => ("ok     ", AnsiColor::Green),
        Verdict::Warning => ("warning", AnsiColor::Yellow),
        Verdict::Failure => ("failure", AnsiColor::Red),
    };
    let advice = check.advice.as_ref().map(|advice| format!("\n           {advice}")).unwrap_or_default();
    format!("{}  {}: {}{advice}", painted(mark, colour), check.name, clean(&check.found))
}

fn status_text(status: &PoolStatus) -> String {
    let name = format!("{}/{}", status.user, status.device);
    let mut text = format!("{name}\n{}\n{}\n{}", tables::status(status), bar(status), health_text(status));
    for drain in &status.draining {
        let _ = write!(
            text,
            "\n{}: {} was handed out {} of them within an hour.",
            painted("warning", AnsiColor::Yellow),
            drain.user,
            drain.handed_out
        );
    }
    text
}

/// A bar of the fresh KeyPackages in a full pool.
pub(super) fn bar(status: &PoolStatus) -> String {
    let full = status.fresh.saturating_add(status.recommended_upload).max(1);
    let width = u64::try_from(BAR_WIDTH).unwrap_or(u64::MAX);
    let filled = usize::try_from(status.fresh.saturating_mul(width) / full).unwrap_or(BAR_WIDTH).min(BAR_WIDTH);
    let filled_part = painted(&"#".repeat(filled), colour(status.health));
    format!("[{filled_part}{}] {}/{full} fresh", ".".repeat(BAR_WIDTH - filled), status.fresh)
}

fn colour(health: Health) -> AnsiColor {
    match health {
        Health::Good => AnsiColor::Green,
        Health::Low => AnsiColor::Yellow,
        Health::Empty => AnsiColor::Red,
    }
}

pub(super) fn health_text(status: &PoolStatus) -> String {
    let fresh = status.fresh;
    let text = match status.health {
        Health::Good => format!("The pool is in good health: {fresh} fresh KeyPackages."),
        Health::Low => format!("The pool is low: {fresh} fresh KeyPackages; `keypool refresh` fills it."),
        Health::Empty if status.last_resort.present => {
            "The pool is empty but for the last resort; `keypool refresh` fills it.".to_owned()
        }
        Health::Empty => "The pool is empty, and nobody can add this device; `keypool refresh` fills it.".to_owned(),
    };
    painted(&text, colour(status.health))
}

#[cfg(test)]
mod tests {
    use keypool_openapi::RejectionReason;

    use super::*;
    use crate::mls::Rejection;

    const HOSTILE: &str = "\u{7}\u{1b}]0;owned\r";

    #[test]
    fn what_the_doctor_heard_from_a_server_does_nothing_to_a_terminal() {
        let found = HOSTILE.to_owned();
        let text = check_text(&Check { name: "server", verdict: Verdict::Failure, found, advice: None });
        assert!(text.ends_with("server: ]0;owned"), "{text:?}");
    }

    #[test]
    fn why_a_server_refused_a_key_package_does_nothing_to_a_terminal() {
        let pool = json!({
            "user": "alice", "device": "laptop", "at": "2026-01-01T00:00:00Z", "available": 0, "fresh": 0, "lapsed": 0,
            "reserved": 0, "spent": 0, "expired": 0, "revoked": 0, "total": 0, "expiring_soon": 0, "last_upload": null,
            "last_resort": { "present": true, "uses": 0 }, "health": "empty", "recommended_upload": 32,
            "inventory_digest": "", "draining": [], "ciphersuites": []
        });
        let mut report = RefreshReport::new(serde_json::from_value(pool).unwrap());
        report.rejected.push(Rejection {
            keypackage_ref: vec![1; 32].into(),
            reason: RejectionReason::Malformed,
            detail: HOSTILE.to_owned(),
        });
        let text = refresh_text(&report);
        assert!(text.contains("as malformed: ]0;owned\n"), "{text:?}");
    }
}
