//! Answers as text for people.

use std::fmt::Write as _;

use clap::builder::styling::AnsiColor;
use keypool_client::{Group, Invited, RefreshReport, Renewed, SafetyNumber, UnfitDevice, UnfitReason};
use keypool_openapi::{
    DeviceOf, Health, MissingDevice, MissingReason, PoolStatus, Undelivered, UndeliveredReason, device_name,
};

use crate::{
    colour::{painted, warning},
    doctor::{Check, Verdict},
    incoming,
    log_text::report_line,
    tables,
    text::{clean, target_name},
};

const BAR_WIDTH: usize = 32;

/// An error in one line.
pub fn error_line(what: &str, error: &str) -> String {
    format!("{}: {what}: {}", painted("error", AnsiColor::Red), clean(error))
}

pub fn invited_text(group: &Group, invited: &Invited) -> String {
    let mut text = match invited.added.as_slice() {
        [] => format!("Nobody was added to {}.", group.name),
        added => format!("{} added to {}.", names(added), group.name),
    };
    for missing in &invited.missing {
        let _ = write!(text, "\n{}", warning(&not_added_text(missing)));
    }
    for unfit in &invited.unfit {
        let _ = write!(text, "\n{}", warning(&unfit_text(unfit)));
    }
    for notice in &invited.notices {
        let _ = write!(text, "\n{}", incoming::notice_line(notice));
    }
    text + &undelivered_text(&invited.undelivered)
}

/// Which device was not added, why, and what helps.
fn not_added_text(missing: &MissingDevice) -> String {
    let device = target_name(&missing.user, missing.device.as_ref());
    let suites = missing.ciphersuites.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let help = match missing.reason {
        MissingReason::UnknownUser => "Check the name; it is case-sensitive".to_owned(),
        MissingReason::UnknownDevice => "Invite again when the user has registered a device".to_owned(),
        MissingReason::PoolExhausted | MissingReason::PoolExpired => {
            "Invite again when that device has refreshed its pool".to_owned()
        }
        MissingReason::NoMatchingCiphersuite => {
            format!(
                "Its KeyPackages are of ciphersuite {suites}, and a group keeps its own: a device that was made with `keypool \
                 init --ciphersuite` for that one can invite it"
            )
        }
        MissingReason::TooManyRequests => "Invite again in a minute".to_owned(),
        MissingReason::ReservationLapsed => "Invite again".to_owned(),
    };
    format!("{device} was not added: {}. {help}.", missing.reason)
}

/// Which device was not added for its KeyPackage, why, and what helps.
fn unfit_text(UnfitDevice { device, reason, why }: &UnfitDevice) -> String {
    let help = match reason {
        UnfitReason::OwnClock => "Set this machine's clock, and invite again",
        UnfitReason::Lifetime => "Have its owner set its clock and run `keypool rotate` there, then invite again",
        UnfitReason::Credential => "A program that checks such credentials can invite it",
        UnfitReason::SameSignatureKey => {
            "Two devices must not share a signature key: have one of them run `keypool rotate`, then invite again"
        }
        UnfitReason::SameKey => "Invite again: it has other KeyPackages",
        UnfitReason::Unsupported => "Another version of its program may help",
    };
    format!("{device} was not added: {}. {help}.", clean(why))
}

pub fn renewed_text(renewed: &Renewed) -> String {
    format!("{}\nThe old group of this name is read-only now.", invited_text(&renewed.group, &renewed.invited))
}

pub fn safety_number_text(number: &SafetyNumber) -> String {
    let keys = number.keys.iter().map(|one| {
        let (suite, since) = (one.key.ciphersuite, one.key.since);
        format!("{}: ciphersuite {suite}, since {since}\n    {}", one.device, one.fingerprint)
    });
    format!("{}\n{}", number.number, keys.collect::<Vec<_>>().join("\n"))
}

/// A warning for each device that a message did not reach.
pub fn undelivered_text(undelivered: &[Undelivered]) -> String {
    let line = |Undelivered { user, device, reason }: &Undelivered| {
        let why = match reason {
            UndeliveredReason::UnknownDevice => "the server knows no such device any more",
            UndeliveredReason::QueueFull => "its queue on the server is full",
        };
        format!("\n{}", warning(&format!("it did not reach {}: {why}.", device_name(user, device))))
    };
    undelivered.iter().map(line).collect()
}

pub fn names(devices: &[DeviceOf]) -> String {
    devices.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

pub fn refresh_text(report: &RefreshReport) -> String {
    let mut text = if report.changed_nothing() {
        "Nothing to do.".to_owned()
    } else {
        let steps = [
            ("removed", report.removed),
            ("reconciled", report.reconciled),
            ("revoked", report.revoked),
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
    for one in warnings {
        let _ = write!(text, "\n{}", warning(&clean(&one)));
    }
    if let Some(log) = &report.log {
        let _ = write!(text, "\n{}", report_line(log));
    }
    let _ = write!(text, "\n{}", health_text(&report.pool));
    text
}

pub fn check_text(check: &Check) -> String {
    let (mark, colour) = match check.verdict {
        Verdict::Ok => ("ok     ", AnsiColor::Green),
        Verdict::Warning => ("warning", AnsiColor::Yellow),
        Verdict::Failure => ("failure", AnsiColor::Red),
    };
    let advice = check.advice.as_ref().map(|advice| format!("\n           {advice}")).unwrap_or_default();
    format!("{}  {}: {}{advice}", painted(mark, colour), check.name, clean(&check.found))
}

pub fn status_text(status: &PoolStatus) -> String {
    let name = device_name(&status.user, &status.device);
    let mut text =
        format!("{name}\n{}\n{}\n{}", tables::text(tables::status(status)), bar(status), health_text(status));
    for drain in &status.draining {
        let drained = format!("{} reserved {} of them within an hour.", drain.user, drain.handed_out);
        let _ = write!(text, "\n{}", warning(&drained));
    }
    text
}

/// A bar that shows the fresh KeyPackages of a full pool.
pub fn bar(status: &PoolStatus) -> String {
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

pub fn health_text(status: &PoolStatus) -> String {
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
    use serde_json::json;
    use strum::IntoEnumIterator;

    use super::*;
    use keypool_client::Rejection;

    const HOSTILE: &str = "\u{7}\u{1b}]0;owned\r";

    #[test]
    fn what_the_doctor_heard_from_a_server_does_nothing_to_a_terminal() {
        let found = HOSTILE.to_owned();
        let text = check_text(&Check { name: "server", verdict: Verdict::Failure, found, advice: None });
        assert!(text.ends_with("server: ]0;owned"), "{text:?}");
    }

    #[test]
    fn advice_to_refresh_is_given_where_refreshing_helps() {
        for reason in MissingReason::iter() {
            let (user, device) = ("bob".parse().unwrap(), Some("phone".parse().unwrap()));
            let text = not_added_text(&MissingDevice { user, device, reason, ciphersuites: vec![2, 3] });
            let helps = matches!(reason, MissingReason::PoolExhausted | MissingReason::PoolExpired);
            assert_eq!(text.contains("refreshed"), helps, "{text}");
            assert_eq!(text.contains("2, 3"), reason == MissingReason::NoMatchingCiphersuite, "{text}");
            assert!(text.contains(&format!("bob/phone was not added: {reason}. ")), "{text}");
        }
    }

    #[test]
    fn advice_for_an_unfit_device_names_the_one_that_helps() {
        for (reason, advice) in [
            (UnfitReason::OwnClock, "Set this machine's clock"),
            (UnfitReason::Lifetime, "Have its owner set its clock"),
            (UnfitReason::Credential, "A program that checks"),
            (UnfitReason::SameSignatureKey, "run `keypool rotate`"),
            (UnfitReason::SameKey, "Invite again"),
            (UnfitReason::Unsupported, "Another version"),
        ] {
            let device = "bob/phone".parse().unwrap();
            let text = unfit_text(&UnfitDevice { device, reason, why: format!("{HOSTILE}it is so") });
            assert!(
                text.starts_with("bob/phone was not added: ]0;ownedit is so. ") && text.contains(advice),
                "{text:?}"
            );
            // Refreshing the pool helps for none of these.
            assert!(!text.contains("refresh"), "{text}");
        }
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
