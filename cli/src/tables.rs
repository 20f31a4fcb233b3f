//! Answers as tables: with borders on a terminal, plain in a pipe.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _},
};

use comfy_table::{
    ColumnConstraint, ContentArrangement, Table,
    presets::{NOTHING, UTF8_FULL_CONDENSED},
};
use jiff::Timestamp;
use keypool_client::{Checks, Group, GroupState, LogState, MembershipChange};
use keypool_openapi::{Device, DeviceName, InventoryItem, PoolStatus, ReserveResponse, SignatureKey, device_name};

use crate::{
    answers::TrailEvent,
    text::{clean, target_name},
};

/// The widest line. Long names are folded.
const WIDTH: u16 = 80;

/// The longest line that is kept whole.
const WHOLE: u16 = 32;

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH).set_header(header);
    table
}

/// Keeps the lines of these columns whole, so that what is in them can be copied.
fn whole<const N: usize>(mut table: Table, columns: [usize; N]) -> Table {
    let widths = table.column_max_content_widths();
    for at in columns {
        let is_short = widths.get(at).is_some_and(|width| *width <= WHOLE);
        if let Some(column) = table.column_mut(at).filter(|_| is_short) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    table
}

/// The text of a table: with borders on a terminal, plain in a pipe.
pub fn text(table: Table) -> String {
    styled(table, io::stdout().is_terminal())
}

fn styled(mut table: Table, has_borders: bool) -> String {
    table.load_style(if has_borders { UTF8_FULL_CONDENSED } else { NOTHING });
    table.trim_fmt()
}

pub fn reservations(answer: &ReserveResponse) -> Table {
    let mut table = table(["Device and reservation id", "Held until"]);
    for held in &answer.reservations {
        let note = if held.last_resort { ", last resort" } else { "" };
        table.add_row([
            format!("{}\n{}", device_name(&held.user, &held.device), held.reservation_id),
            format!("{}\nsuite {}{note}", held.expires_at, held.ciphersuite),
        ]);
    }
    for missing in &answer.missing {
        let device = target_name(&missing.user, missing.device.as_ref());
        table.add_row([format!("{device}\nnot reserved: {}", missing.reason)]);
    }
    whole(table, [1])
}

pub fn status(status: &PoolStatus) -> Table {
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
    table.add_row([
        "last upload".to_owned(),
        status.last_upload.map_or_else(|| "never".to_owned(), |time| time.to_string()),
    ]);
    if status.ciphersuites.len() > 1 {
        for part in &status.ciphersuites {
            table.add_row([format!("fresh in ciphersuite {}", part.ciphersuite), part.fresh.to_string()]);
        }
    }
    table
}

pub fn inventory(items: &[InventoryItem]) -> Table {
    let mut table = table(["KeyPackage", "State"]);
    for item in items {
        let last_resort = if item.last_resort { "last resort, " } else { "" };
        let mut about =
            format!("{}\n{last_resort}suite {}, until {}", item.keypackage_ref, item.ciphersuite, item.not_after);
        if let Some(by) = &item.reserved_by {
            let _ = write!(about, "\nreserved by {by} until {}", time(item.reserved_until));
        }
        table.add_row([about, item.state.to_string()]);
    }
    table
}

/// What this device has checked in the server's log.
pub fn log(origin: &str, state: &LogState) -> Table {
    let mut table = table(["Transparency log", ""]);
    let checked_at = state.checked_at.map_or_else(|| "never".to_owned(), |at| format!("at {at}"));
    let rows = [
        ("name", clean(origin)),
        ("key believed since", time(state.since)),
        ("checked up to", format!("{} leaves, {checked_at}", state.size)),
        ("handed to this device", checks_line(&state.hand_outs)),
        ("of this device", checks_line(&state.own)),
        ("broken promises", state.findings.len().to_string()),
    ];
    for (name, value) in rows {
        table.add_row([name.to_owned(), value]);
    }
    table
}

/// A paragraph for each event: a line with a ref has no room for more.
pub fn events(events: &[TrailEvent]) -> Table {
    let mut table = Table::new();
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    for event in events {
        let by = event.actor.as_ref().map(|actor| format!(" by {actor}")).unwrap_or_default();
        let group = event.group.as_ref().map(|group| format!("\n    group {group}")).unwrap_or_default();
        table.add_row([format!("{}  {}{by}\n    KeyPackage {}{group}", event.at, event.action, event.keypackage_ref)]);
    }
    if let Some(column) = table.column_mut(0) {
        column.set_padding((0, 0));
    }
    table
}

pub fn devices(own: &DeviceName, devices: &[Device]) -> Table {
    let mut table = table(["Device", "Registered", "Signature keys"]);
    for one in devices {
        let keys = one.signature_keys.iter().map(|key| format!("{}: {}", key.ciphersuite, fingerprint(key)));
        let note = if one.device == *own { " (this one)" } else { "" };
        table.add_row([
            format!("{}{note}", one.device),
            one.registered_at.to_string(),
            keys.collect::<Vec<_>>().join("\n"),
        ]);
    }
    whole(table, [1, 2])
}

/// The beginning of a key, by which a person tells keys apart. `keypool verify` compares whole keys.
fn fingerprint(key: &SignatureKey) -> String {
    hex::encode(key.signature_key.0.iter().take(8).copied().collect::<Vec<_>>())
}

pub fn groups(groups: &[Group]) -> Table {
    let mut table = table(["Group", "Devices", "Epoch", "Id"]);
    for group in groups {
        let (members, epoch) = (group.members.to_string(), group.epoch.to_string());
        let state = match group.state {
            GroupState::Active => "",
            GroupState::Behind => " (cannot be changed: renew it)",
            GroupState::FellBehind => {
                " (fell behind: comes back by itself if it can; else have this user invited again)"
            }
            GroupState::ReadOnly => " (read-only: renewed)",
        };
        table.add_row([format!("{}{state}", clean(&group.name)), members, epoch, group.id.clone()]);
    }
    whole(table, [1, 2, 3])
}

pub fn history(changes: &[MembershipChange]) -> Table {
    let mut table = table(["When", "Epoch", "By", "Added", "Removed", "Came back"]);
    for change in changes {
        // Other members chose these names.
        let names = |members: &[String]| clean(&members.join(", "));
        table.add_row([
            change.at.to_string(),
            change.epoch.to_string(),
            change.by.as_deref().map_or_else(|| "(while this device was away)".to_owned(), clean),
            names(&change.added),
            names(&change.removed),
            names(&change.updated),
        ]);
    }
    table
}

/// The counts of checks, in one line.
fn checks_line(Checks { fine, due, unknown }: &Checks) -> String {
    let mut text = format!("{fine} as they have to be");
    if *due > 0 {
        let _ = write!(text, ", {due} at the next refresh");
    }
    if *unknown > 0 {
        let _ = write!(text, ", {unknown} that the server can no longer prove");
    }
    text
}

fn time(time: Option<Timestamp>) -> String {
    time.map_or_else(String::new, |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    const TIME: &str = "2026-01-01T00:00:00Z";
    const ID: &str = "7fffffff-67e55044-10b1-426f-9247-bb680e5fe0c8";

    fn read<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    /// The lines of a table, with borders and without. None is too long, and each of `whole` is in one line.
    fn lines(table: &Table, whole: &[&str]) {
        for has_borders in [true, false] {
            let text = styled(table.clone(), has_borders);
            for line in text.lines() {
                assert!(line.chars().count() <= usize::from(WIDTH), "{text}");
            }
            for part in whole {
                assert!(text.lines().any(|line| line.contains(part)), "{part} is folded:\n{text}");
            }
        }
    }

    fn names() -> [(String, String); 2] {
        let long = ("someone-with-a-long-name".repeat(10), "telephone".repeat(7));
        [("bob".to_owned(), "phone".to_owned()), long]
    }

    #[test]
    fn every_table_fits_80_columns_and_what_is_copied_is_whole() {
        let hash = "a1".repeat(32);
        for (user, device) in names() {
            let of = json!({ "user": user, "device": device });
            let reserved = json!({
                "reservations": [{
                    "reservation_id": ID, "user": user, "device": device, "keypackage_ref": hash, "keypackage": "",
                    "ciphersuite": 65_535, "not_after": TIME, "expires_at": TIME, "last_resort": true
                }],
                "missing": [{ "user": user, "device": device, "reason": "no-matching-ciphersuite", "ciphersuites": [] }]
            });
            lines(&reservations(&read(reserved)), &[ID, TIME]);
            let item = json!({
                "keypackage_ref": hash, "state": "available", "ciphersuite": 65_535, "not_after": TIME, "last_resort": true,
                "reserved_by": of, "reserved_until": TIME
            });
            lines(&inventory(&[read(item)]), &[&hash, "available"]);
            let event = json!({
                "id": 1, "at": TIME, "action": "signature-key-changed", "keypackage_ref": hash, "owner": of, "actor": of,
                "group_id": "00".repeat(64), "last_resort": false
            });
            let trail = keypool_openapi::AuditPage { events: vec![read(event)], next: None, log: None };
            lines(&events(&crate::answers::Trail::from(trail).events), &[TIME, &hash]);
            let key = json!({ "ciphersuite": 3, "signature_key": "AAAAAAAAAAAAAAAA", "since": TIME });
            let registered = json!({
                "user": user, "device": device, "registered_at": TIME, "signature_keys": [key, key], "previous_signature_keys": []
            });
            lines(&devices(&device.parse().unwrap(), &[read(registered)]), &[TIME, "3: 0000000000000000"]);
            for state in [GroupState::Active, GroupState::Behind, GroupState::FellBehind, GroupState::ReadOnly] {
                let (id, long_id) = ("b2".repeat(16), "b2".repeat(64));
                let group = |id: &str, epoch| Group {
                    id: id.to_owned(),
                    name: user.clone(),
                    epoch,
                    members: 1_000_000,
                    state,
                    group_id: Vec::new(),
                };
                lines(&groups(&[group(&id, 1)]), &[&id]);
                lines(&groups(&[group(&long_id, u64::MAX)]), &[]);
            }
        }
    }
}
