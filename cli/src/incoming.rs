//! Received items as text for people.

use clap::builder::styling::AnsiColor;
use keypool_client::{DeviceChange, Event, Group, Incoming, Notice};
use keypool_openapi::{DeviceOf, MessageKind, RefusalReason};

use crate::{
    colour::{painted, warning},
    text::{argument, clean, clean_lines},
};

/// The name of the group that an item concerns.
pub fn group_name(groups: &[Group], one: &Incoming) -> String {
    groups.iter().find(|group| group.id == one.group).map_or(&one.group, |group| &group.name).clone()
}

/// Where the text is shown, which decides which command it suggests. During a chat, no other command can open the data
/// directory.
#[derive(Clone, Copy)]
pub enum Place<'g> {
    /// In a shell; the group's name is for the command.
    Shell { group: &'g str },
    /// In a chat.
    Chat,
}

/// The text of an item, and a line for each notice.
pub fn lines(one: &Incoming, place: Place<'_>) -> Vec<String> {
    let notices = one.notices.iter().map(notice_line);
    [event_text(&one.event, place)].into_iter().chain(notices).collect()
}

fn event_text(event: &Event, place: Place<'_>) -> String {
    match event {
        Event::Text { sender, text } => format!("{}: {}", painted(&clean(sender), AnsiColor::Cyan), clean_lines(text)),
        Event::Joined { by } => format!("{by} added this device"),
        Event::Content { sender, content_type, bytes } => {
            format!("{} sent {} bytes of {}", clean(sender), bytes.0.len(), clean(content_type))
        }
        Event::Changed { .. } => "the group changed".to_owned(),
        Event::Members { by, added, removed, updated } => members_text(by, (added, removed, updated)),
        Event::FellBehind => warning("this device missed a change of the group, and cannot read what follows"),
        Event::CameBack => "this device is back in the group; what was sent meanwhile stays unread".to_owned(),
        Event::Stranger => "ignored: this device is not in that group; the sender was notified".to_owned(),
        Event::Asks { device, is_admitted } => asks_text(device, *is_admitted, place),
        Event::Removed => "this device is no longer in the group".to_owned(),
        Event::Refused { kind, by, reason, why } => refused_text(*kind, by, (*reason, why), place),
        Event::Renewed { by, without, .. } => renewed_text(by, without),
        Event::RenewalClaimed { by, old_group, without, added } => claimed_text(by, old_group, (without, added), place),
        Event::Device { device, change } => warning(&device_text(device, *change)),
        Event::Unreadable { device, about, reason } => unreadable_text(device, *about, *reason),
        Event::KeysGone { by } => {
            format!("{by} sent an invitation for keys that are gone; the sender was notified")
        }
        Event::Ignored { why } => format!("ignored: {}", clean(why)),
    }
}

fn asks_text(device: &DeviceOf, is_admitted: bool, place: Place<'_>) -> String {
    let asks = format!("{device} is new, or has lost what it had of the group, and asks to be let in");
    if is_admitted {
        return format!("{asks}; members do that by themselves");
    }
    let invite = match place {
        Place::Shell { group } => {
            format!("keypool group invite {} {}", argument(group), argument(device.user.as_str()))
        }
        Place::Chat => format!("/invite {}", device.user),
    };
    format!("{asks}. Members do not do that by themselves here: `{invite}` lets it in")
}

fn device_text(device: &DeviceOf, change: DeviceChange) -> String {
    let change = match change {
        DeviceChange::Registered => "was registered",
        DeviceChange::Removed => "was removed",
        DeviceChange::NewSignatureKey => "has a new signature key",
    };
    format!(
        "your device {device} {change}. If that was not you, somebody has a token of one of your devices: remove the devices that \
         are not yours, and tell the server's operator"
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

fn members_text(by: &str, (added, removed, updated): (&[String], &[String], &[String])) -> String {
    if let ([], [], [back]) = (added, removed, updated)
        && back == by
    {
        return format!("{} fell behind and is back", clean(by));
    }
    let part =
        |verb: &str, names: &[String]| (!names.is_empty()).then(|| format!("{verb} {}", clean(&names.join(", "))));
    let parts = [part("added", added), part("removed", removed), part("brought back", updated)];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    format!("{} {}", clean(by), parts.join(" and "))
}

fn unreadable_text(device: &DeviceOf, about: MessageKind, reason: RefusalReason) -> String {
    let (name, user) = (device, &device.user);
    if (about, reason) == (MessageKind::Message, RefusalReason::KeysGone) {
        return warning(&format!(
            "{name} cannot read the group: it was installed anew, or has left. If it has a new signature key, members bring it back \
             by themselves"
        ));
    }
    if (about, reason) == (MessageKind::Welcome, RefusalReason::KeysGone) {
        return warning(&format!(
            "{name} could not use the invitation, and cannot read the group: its keys for that are gone. Have it refresh its pool: it \
             then asks to be let in, and members do that by themselves, or when somebody invites {user} again"
        ));
    }
    let what = match about {
        MessageKind::Commit => "this device's change of the group",
        MessageKind::Message => "a message",
        MessageKind::Welcome | MessageKind::Unreadable => "the invitation",
    };
    let why = match reason {
        RefusalReason::KeysGone => "its keys for that are gone. Have it refresh its pool",
        RefusalReason::Unsupported => {
            "its program does not support something in the group. Have it use a newer version, or another program"
        }
        RefusalReason::NotTrusted => {
            "a member of the group is not the device that it claims to be. Compare safety numbers with `keypool verify`"
        }
        RefusalReason::Invalid => "it could not be decrypted, or is not valid. Have it look into its log",
    };
    warning(&format!(
        "{name} could not use {what}, and cannot read the group: {why}. Then remove {user} from the group, which takes out \
         all devices of {user}, and invite {user} again"
    ))
}

fn refused_text(kind: MessageKind, by: &str, (reason, why): (RefusalReason, &str), place: Place<'_>) -> String {
    let what = match kind {
        MessageKind::Welcome => "an invitation",
        MessageKind::Commit => "a change of the group",
        MessageKind::Message | MessageKind::Unreadable => "a message",
    };
    let refused = warning(&format!("refused {what} by {}: {}", clean(by), clean(why)));
    if kind != MessageKind::Commit {
        return refused;
    }
    if reason != RefusalReason::NotTrusted {
        return format!(
            "{refused}. This device comes back by itself if it can. If it does not, ask another member to remove this device from \
             the group, and to invite its user again"
        );
    }
    let by = argument(by);
    let renew = match place {
        Place::Shell { group } => format!("`keypool group renew {} --without {by}`", argument(group)),
        Place::Chat => format!("`/renew {by}` in it"),
    };
    format!(
        "{refused}. The members who refused it can still talk there, and cannot change the group any more: {renew} makes a \
         new group with everybody else"
    )
}

/// A notice about a member, as a warning.
pub fn notice_line(notice: &Notice) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "\u{7}\u{1b}]0;owned\r";

    #[test]
    fn what_others_wrote_does_nothing_to_a_terminal() {
        let hostile = || HOSTILE.to_owned();
        let events = [
            Event::Members {
                by: hostile(),
                added: vec![hostile()],
                removed: vec![hostile()],
                updated: vec![hostile()],
            },
            Event::Refused {
                kind: MessageKind::Commit,
                by: hostile(),
                reason: RefusalReason::NotTrusted,
                why: hostile(),
            },
            Event::Renewed { by: hostile(), old_group: String::new(), without: vec![hostile()] },
            Event::RenewalClaimed {
                by: hostile(),
                old_group: String::new(),
                without: vec![hostile()],
                added: vec![hostile()],
            },
        ];
        let texts = events.iter().map(|event| event_text(event, Place::Shell { group: "friends" }));
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
        let (kind, reason, why) = (MessageKind::Commit, RefusalReason::NotTrusted, "no".to_owned());
        let refused = Event::Refused { kind, by, reason, why };
        let text = event_text(&refused, Place::Shell { group: "my friends" });
        assert!(text.contains("`keypool group renew 'my friends' --without mallory/laptop` makes"), "{text}");
        let text = event_text(&refused, Place::Chat);
        assert!(text.contains("`/renew mallory/laptop` in it makes"), "{text}");
        let Event::Refused { kind, by, why, .. } = refused else { unreachable!() };
        let unreadable = Event::Refused { kind, by, reason: RefusalReason::Unsupported, why };
        let text = event_text(&unreadable, Place::Chat);
        assert!(text.contains("comes back by itself if it can") && !text.contains("can still talk"), "{text}");
    }
}
