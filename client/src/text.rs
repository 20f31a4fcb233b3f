//! Text from other people.

/// Removes control characters, so that text from other people cannot control a terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}
