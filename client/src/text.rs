//! Text from other people.

/// Removes control characters and those that turn the direction of text around (Unicode Standard Annex 9), so that text
/// from other people cannot control a terminal.
pub(crate) fn clean(text: &str) -> String {
    let turns =
        |c| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().filter(|c| !c.is_control() && !turns(*c)).collect()
}
