//! Answers as tables: with borders on a terminal, plain in a pipe.

use std::io::{self, IsTerminal as _};

use comfy_table::{
    Table,
    presets::{NOTHING, UTF8_FULL_CONDENSED},
};
use jiff::Timestamp;
use keypool_client::{Group, GroupState, MembershipChange};
use keypool_openapi::{
    AuditEvent, Device, DeviceName, DeviceOf, InventoryItem, PoolStatus, ReserveResponse, SignatureKey, device_name,
};

use crate::text::{clean, target_name};

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    let style = if io::stdout().is_terminal() { UTF8_FULL_CONDENSED } else { NOTHING };
    table.load_style(style).set_header(header);
    table
}

pub fn reservations(answer: &ReserveResponse) -> String {
    let mut table = table(["Device", "Reservation id", "Suite", "Held until", "Note"]);
    for held in &answer.reservations {
        table.add_row([
            device_name(&held.user, &held.device),
            held.reservation_id.to_string(),
            held.ciphersuite.to_string(),
            held.expires_at.to_string(),
            if held.last_resort { "last resort".to_owned() } else { String::new() },
        ]);
    }
    for missing in &answer.missing {
        let device = target_name(&missing.user, missing.device.as_ref());
        table.add_row([device, String::new(), String::new(), String::new(), missing.reason.to_string()]);
    }
    table.trim_fmt()
}

pub fn status(status: &PoolStatus) -> String {
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
    table.trim_fmt()
}

pub fn inventory(items: &[InventoryItem]) -> String {
    let mut table = table(["KeyPackage", "State", "Suite", "Expires", "Reserved by", "Until"]);
    for item in items {
        let state = if item.last_resort { format!("{}, last resort", item.state) } else { item.state.to_string() };
        table.add_row([
            item.keypackage_ref.to_string(),
            state,
            item.ciphersuite.to_string(),
            item.not_after.to_string(),
            device(item.reserved_by.as_ref()),
            time(item.reserved_until),
        ]);
    }
    table.trim_fmt()
}

pub fn events(events: &[AuditEvent]) -> String {
    let mut table = table(["When", "What", "By", "KeyPackage", "Group"]);
    for event in events {
        let group = event.group_id.as_ref().map(|group_id| hex::encode(&group_id.0));
        table.add_row([
            event.at.to_string(),
            event.action.to_string(),
            device(event.actor.as_ref()),
            event.keypackage_ref.to_string(),
            group.unwrap_or_default(),
        ]);
    }
    table.trim_fmt()
}

pub fn devices(own: &DeviceName, devices: &[Device]) -> String {
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
    table.trim_fmt()
}

/// The beginning of a key, by which a person tells keys apart. `keypool verify` compares whole keys.
fn fingerprint(key: &SignatureKey) -> String {
    hex::encode(key.signature_key.0.iter().take(8).copied().collect::<Vec<_>>())
}

pub fn groups(groups: &[Group]) -> String {
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
        table.add_row([format!("{}{state}", group.name.escape_debug()), members, epoch, group.id.clone()]);
    }
    table.trim_fmt()
}

pub fn history(changes: &[MembershipChange]) -> String {
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
    table.trim_fmt()
}

fn device(device: Option<&DeviceOf>) -> String {
    device.map_or_else(String::new, ToString::to_string)
}

fn time(time: Option<Timestamp>) -> String {
    time.map_or_else(String::new, |time| time.to_string())
}
