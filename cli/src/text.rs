//! Text from other people, and names.

use std::borrow::Cow;

use keypool_client::turns_text;
use keypool_openapi::{DeviceName, UserName, device_name};

/// Removes control characters, so that text from other people cannot control a terminal, and shows those that turn the
/// direction of text around.
pub fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).map(visible).collect()
}

/// The same for a text of several lines. The later lines are indented, so that none looks like a message of its own.
pub fn clean_lines(text: &str) -> String {
    text.lines().map(|line| clean(&line.replace('\t', "    "))).collect::<Vec<_>>().join("\n    ")
}

/// A character, or the number of one that turns the direction of text around.
fn visible(c: char) -> Cow<'static, str> {
    if turns_text(c) { format!("<U+{:04X}>", u32::from(c)).into() } else { c.to_string().into() }
}

/// The `user/device` of a device, or the user's name for all devices of a user.
pub fn target_name(user: &UserName, device: Option<&DeviceName>) -> String {
    device.map_or_else(|| user.to_string(), |device| device_name(user, device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_is_shown_as_it_is_and_controls_nothing() {
        assert_eq!(clean("a\u{7}\u{1b}[31mb\r\nc"), "a[31mbc");
        assert_eq!(clean("pay \u{202e}001\u{2069}"), "pay <U+202E>001<U+2069>");
        assert_eq!(
            clean_lines("one\r\n\ttwo\u{7}\n12:00 bob/phone: three"),
            "one\n        two\n    12:00 bob/phone: three"
        );
        assert_eq!(clean_lines("\u{5e9}\u{5dc}\u{5d5}\u{5dd}"), "\u{5e9}\u{5dc}\u{5d5}\u{5dd}");
    }
}
