//! How people are shown what came.

use clap::builder::styling::AnsiColor;
use keypool_openapi::{DeviceOf, MessageKind};

use super::output::{name, painted};
use crate::mls::{DeviceChange, Group, Incoming, Notice, What, clean};

/// The name of the group that something is about.
pub(super) fn group_name(groups: &[Group], one: &Incoming) -> String {
    groups.iter().find(|group| group.id == one.group).map_or(&one.group, |group| &group.name).clone()
}

/// Where people read what came, and type the command that is the way on. While they chat, no other command opens the data
/// directory.
#[derive(Clone, Copy)]
pub(super) enum Place<'g> {
    /// In a shell; the group's name is for the command.
    Shell { group: &'g str },
    /// In a chat.
    Chat,
}

/// What came, and a line for each thing that people should know of the members that it is about.
pub(super) fn lines(one: &Incoming, place: Place<'_>) -> Vec<String> {
    let notices = one.notices.iter().map(notice_line);
    [what_text(&one.what, place)].into_iter().chain(notices).collect()
}

fn what_text(what: &What, place: Place<'_>) -> String {
    match what {
        What::Text { sender, text } => format!("{}: {}", painted(&clean(sender), AnsiColor::Cyan), clean(text)),
        What::Joined { by } => format!("{} added this device", name(by)),
        What::Members { by, added, removed } => members_text(by, added, removed),
        What::Changed => "the group changed".to_owned(),
        What::Removed => "this device is no longer in the group".to_owned(),
        What::Refused { kind, by, why } => refused_text(*kind, by, why, place),
        What::Renewed { by, without, .. } => renewed_text(by, without),
        What::RenewalClaimed { by, old_group, without, added } => claimed_text(by, old_group, (without, added), place),
        What::Device { device, change } => warning(&device_text(device, *change)),
        What::Unreadable { device } => {
            format!(
                "{} could not open the invitation: have it refresh its pool, remove {user} from the group, which takes \
                 out all devices of {user}, and invite {user} again",
                name(device),
                user = device.user
            )
        }
        What::KeysGone { by } => format!("an invitation by {} was for keys that are gone; they were told", name(by)),
        What::Ignored { why } => format!("passed over: {}", clean(why)),
    }
}

fn device_text(device: &DeviceOf, change: DeviceChange) -> String {
    let change = match change {
        DeviceChange::Registered => "was registered",
        DeviceChange::Removed => "was removed",
        DeviceChange::NewSignatureKey => "has a new signature key",
    };
    format!(
        "your device {} {change}. If that was not you, somebody has a token of one of your devices: remove the devices that \
         are not yours, and tell the server's operator",
        name(device)
    )
}

fn renewed_text(by: &str, without: &[String]) -> String {
    let without = list("without", without);
    format!("{} has made this group in place of an older one, which is read-only now{without}", clean(by))
}

fn claimed_text(by: &str, old_group: &str, (without, added): (&[String], &[String]), place: Place<'_>) -> String {
    let leave = match place {
        Place::Shell { .. } => "keypool group leave",
        Place::Chat => "/leave",
    };
    let claim = warning(&format!(
        "{} says that this group takes the place of the older one {old_group}{}{}",
        clean(by),
        list("without", without),
        list("with", added)
    ));
    format!(
        "{claim}. That does not follow from a change that was refused here, so both go on: ask the others which one they \
         use, and leave the other one with `{leave}`"
    )
}

fn list(word: &str, members: &[String]) -> String {
    if members.is_empty() { String::new() } else { format!(", {word} {}", clean(&members.join(", "))) }
}

fn members_text(by: &str, added: &[String], removed: &[String]) -> String {
    let part =
        |verb: &str, names: &[String]| (!names.is_empty()).then(|| format!("{verb} {}", clean(&names.join(", "))));
    let parts: Vec<_> = [part("added", added), part("removed", removed)].into_iter().flatten().collect();
    format!("{} {}", clean(by), parts.join(" and "))
}

fn refused_text(kind: MessageKind, by: &str, why: &str, place: Place<'_>) -> String {
    let what = match kind {
        MessageKind::Welcome => "an invitation",
        MessageKind::Commit => "a change of the group",
        MessageKind::Message | MessageKind::Unreadable => "a message",
    };
    let refused = warning(&format!("refused {what} by {}: {}", clean(by), clean(why)));
    if kind != MessageKind::Commit {
        return refused;
    }
    let by = clean(by);
    let renew = match place {
        Place::Shell { group } => format!("`keypool group renew {group:?} --without {by}`"),
        Place::Chat => format!("`/renew {by}` in it"),
    };
    format!(
        "{refused}. The members who refused it can still talk there, and cannot change the group any more: {renew} makes a \
         new group with everybody else"
    )
}

/// What people should know of a member, as a warning.
pub(super) fn notice_line(notice: &Notice) -> String {
    warning(&notice_text(notice))
}

fn notice_text(notice: &Notice) -> String {
    match notice {
        Notice::NewSignatureKey { member, since } => {
            let since = since.map(|since| format!(" since {since}")).unwrap_or_default();
            format!("{} has a new signature key{since}; ask its owner if that is not expected", clean(member))
        }
        Notice::PreviousSignatureKey { member, until } => {
            format!("{} is in the group with a signature key that the device had until {until}", clean(member))
        }
        Notice::RemovedDevice { member, at } => {
            format!("{} is in the group, and the device was removed from the server at {at}", clean(member))
        }
        Notice::RemovedBy { member } => format!("removed by {}", clean(member)),
    }
}

fn warning(text: &str) -> String {
    format!("{}: {text}", painted("warning", AnsiColor::Yellow))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "\u{7}\u{1b}]0;owned\r";

    #[test]
    fn what_others_wrote_does_nothing_to_a_terminal() {
        let hostile = || HOSTILE.to_owned();
        let whats = [
            What::Members { by: hostile(), added: vec![hostile()], removed: vec![hostile()] },
            What::Refused { kind: MessageKind::Commit, by: hostile(), why: hostile() },
            What::Renewed { by: hostile(), old_group: String::new(), without: vec![hostile()] },
            What::RenewalClaimed {
                by: hostile(),
                old_group: String::new(),
                without: vec![hostile()],
                added: vec![hostile()],
            },
        ];
        let texts = whats.iter().map(|what| what_text(what, Place::Shell { group: "friends" }));
        let notices =
            [Notice::NewSignatureKey { member: hostile(), since: None }, Notice::RemovedBy { member: hostile() }];
        for text in texts.chain(notices.iter().map(notice_text)) {
            let text = anstream::adapter::strip_str(&text).to_string();
            assert!(text.contains("]0;owned") && !text.contains(['\u{7}', '\u{1b}', '\r']), "{text:?}");
        }
    }

    #[test]
    fn a_refused_change_names_the_way_on() {
        let by = "mallory/laptop".to_owned();
        let refused = What::Refused { kind: MessageKind::Commit, by, why: "no".to_owned() };
        let text = what_text(&refused, Place::Shell { group: "my friends" });
        assert!(text.contains(r#"`keypool group renew "my friends" --without mallory/laptop` makes"#), "{text}");
        let text = what_text(&refused, Place::Chat);
        assert!(text.contains("`/renew mallory/laptop` in it makes"), "{text}");
    }
}
