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

/// A name as an argument of a command that is shown for people to copy: a name of other people must run nothing in a shell.
pub fn argument(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._/@+:=-".contains(c);
    let name = clean(name);
    if !name.is_empty() && !name.starts_with('-') && name.chars().all(is_plain) {
        return name;
    }
    format!("'{}'", name.replace('\'', r"'\''"))
}

/// The words of a line. Quotes keep a name with spaces together, as in a shell; a quote without an end is a character.
pub fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('\\', None) => word.get_or_insert_default().extend(chars.next()),
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return line.split_whitespace().map(str::to_owned).collect();
    }
    words.extend(word);
    words
}

/// Shows what turns the direction of text around, also in names: otherwise `alice` could look like another user.
pub fn show_turning(text: &str) -> String {
    text.chars().map(visible).collect()
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
    fn a_name_in_a_command_runs_nothing() {
        assert_eq!(argument("bob/laptop"), "bob/laptop");
        assert_eq!(argument("my friends"), "'my friends'");
        for hostile in ["$(touch owned)", "`id`", "a;b", "a'b", "a\"b", "~", "-x", "*", "", "!x"] {
            let run =
                std::process::Command::new("sh").args(["-c", &format!("printf %s {}", argument(hostile))]).output();
            assert_eq!(String::from_utf8(run.unwrap().stdout).unwrap(), hostile);
            assert_eq!(words(&format!("/renew {}", argument(hostile))), ["/renew", hostile], "in a chat");
        }
    }

    #[test]
    fn a_line_has_words() {
        assert_eq!(words(" /switch  'my friends' \"a b\"c \\' "), ["/switch", "my friends", "a bc", "'"]);
        assert_eq!(words("/invite d'Artagnan"), ["/invite", "d'Artagnan"]);
        assert_eq!(words("  "), Vec::<String>::new());
    }

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
