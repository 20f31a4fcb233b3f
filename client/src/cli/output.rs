use std::{
    error::Error as _,
    fmt::Write as _,
    io::{self, Write as _},
};

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use indicatif::{ProgressBar, ProgressStyle};
use keypool_openapi::{Health, PoolStatus, ReleaseResponse, ReserveResponse, SpendResponse};
use serde::Serialize;
use serde_json::json;

use crate::{
    error::Error,
    mls::{DeviceIdentity, Progress, RefreshReport},
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

    pub(super) fn initialised(&self, identity: &DeviceIdentity, report: &RefreshReport) {
        self.answer(report, || {
            format!("{} is registered at {}.\n{}", identity.identity(), identity.server(), refresh_text(report))
        });
    }

    pub(super) fn refreshed(&self, report: &RefreshReport) {
        self.answer(report, || refresh_text(report));
    }

    pub(super) fn status(&self, status: &PoolStatus) {
        self.answer(status, || status_text(status));
    }

    pub(super) fn reserved(&self, answer: &ReserveResponse) {
        self.answer(answer, || {
            let mut table = table(["Device", "Reservation id", "Suite", "Held until", "Note"]);
            for held in &answer.reservations {
                table.add_row([
                    format!("{}/{}", held.user, held.device),
                    held.reservation_id.to_string(),
                    held.ciphersuite.to_string(),
                    held.expires_at.to_string(),
                    if held.last_resort { "last resort".to_owned() } else { String::new() },
                ]);
            }
            for missing in &answer.missing {
                let device = missing.device.as_ref().map_or_else(String::new, |device| format!("/{device}"));
                let device = format!("{}{device}", missing.user);
                table.add_row([device, String::new(), String::new(), String::new(), missing.reason.to_string()]);
            }
            table.to_string()
        });
    }

    pub(super) fn spent(&self, answer: &SpendResponse) {
        self.answer(answer, || {
            format!("KeyPackage {} is {} since {}.", answer.keypackage_ref, answer.state, answer.spent_at)
        });
    }

    pub(super) fn released(&self, answer: &ReleaseResponse) {
        self.answer(answer, || format!("KeyPackage {} is {} now.", answer.keypackage_ref, answer.state));
    }

    pub(super) fn token(&self, token: &str) {
        self.answer(&json!({ "token": token }), || token.to_owned());
    }

    pub(super) fn error(&self, error: &Error) {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            // Writing to a String cannot fail.
            let _ = write!(message, ": {inner}");
            cause = inner.source();
        }
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
            hint.map_or_else(|| format!("error: {message}"), |hint| format!("error: {message}\n  hint: {hint}"))
        };
        // With stderr closed there is nobody to tell; the exit code still does.
        let _ = writeln!(io::stderr(), "{text}");
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
        let text = if self.json {
            serde_json::to_string_pretty(answer)
                .unwrap_or_else(|error| json!({ "error": error.to_string() }).to_string())
        } else {
            text()
        };
        // A reader that closed the pipe has read enough.
        let _ = writeln!(io::stdout(), "{text}");
    }
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    table
}

fn refresh_text(report: &RefreshReport) -> String {
    let mut text = if report.removed == 0 && report.generated == 0 && report.uploaded == 0 && report.rejected.is_empty()
    {
        "Nothing to do.".to_owned()
    } else {
        format!("Removed {}, generated {}, uploaded {}.", report.removed, report.generated, report.uploaded)
    };
    for rejection in &report.rejected {
        let _ = write!(
            text,
            "\nwarning: the server refused KeyPackage {} as {}: {}",
            rejection.keypackage_ref, rejection.reason, rejection.detail
        );
    }
    let _ = write!(text, "\n{}", health_text(&report.pool));
    text
}

fn status_text(status: &PoolStatus) -> String {
    let mut table = table(["KeyPackages", "Count"]);
    let counts = [
        ("available", status.available),
        ("  fresh", status.fresh),
        ("  lapsed", status.lapsed),
        ("reserved", status.reserved),
        ("spent", status.spent),
        ("revoked", status.revoked),
        ("expired", status.expired),
        ("total", status.total),
        ("expiring within 2 days", status.expiring_soon),
    ];
    for (name, count) in counts {
        table.add_row([name.to_owned(), count.to_string()]);
    }
    let last_resort = match (status.last_resort.present, status.last_resort.uses) {
        (false, _) => "none".to_owned(),
        (true, 0) => "unused".to_owned(),
        (true, uses) => format!("used {uses} times"),
    };
    table.add_row(["last resort".to_owned(), last_resort]);
    let last_upload = status.last_upload.map_or_else(|| "never".to_owned(), |time| time.to_string());
    table.add_row(["last upload".to_owned(), last_upload]);
    format!("{}/{}\n{table}\n{}\n{}", status.user, status.device, bar(status), health_text(status))
}

/// A bar of the fresh KeyPackages in a full pool.
fn bar(status: &PoolStatus) -> String {
    let full = status.fresh.saturating_add(status.recommended_upload).max(1);
    let width = u64::try_from(BAR_WIDTH).unwrap_or(u64::MAX);
    let filled = usize::try_from(status.fresh.saturating_mul(width) / full).unwrap_or(BAR_WIDTH).min(BAR_WIDTH);
    format!("[{}{}] {}/{full} fresh", "#".repeat(filled), ".".repeat(BAR_WIDTH - filled), status.fresh)
}

fn health_text(status: &PoolStatus) -> String {
    let fresh = status.fresh;
    match status.health {
        Health::Good => format!("The pool is in good health: {fresh} fresh KeyPackages."),
        Health::Low => format!("The pool is low: {fresh} fresh KeyPackages; `keypool refresh` fills it."),
        Health::Empty if status.last_resort.present => {
            "The pool is empty but for the last resort; `keypool refresh` fills it.".to_owned()
        }
        Health::Empty => "The pool is empty, and nobody can add this device; `keypool refresh` fills it.".to_owned(),
    }
}
