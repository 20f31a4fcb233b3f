//! Text from other people.

/// Removes control characters and those that turn the direction of text around, so that text from other people cannot
/// control a terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() && !turns_text(*c)).collect()
}

/// Whether a character turns the direction of text around (Unicode Standard Annex 9).
#[must_use]
pub fn turns_text(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
