//! Coloured words.

use clap::builder::styling::{AnsiColor, Style};

/// The text in a colour. `anstream` removes the colour where the output does not support it.
pub fn painted(text: &str, colour: AnsiColor) -> String {
    let style = Style::new().fg_color(Some(colour.into()));
    format!("{style}{text}{style:#}")
}

/// The text as a warning.
pub fn warning(text: &str) -> String {
    format!("{}: {text}", painted("warning", AnsiColor::Yellow))
}
