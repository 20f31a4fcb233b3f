//! What a side-by-side measurement found.

use std::{
    io::{self, Write},
    time::Duration,
};

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;

/// Two ways to do the same, measured in turns.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Comparison {
    /// What was done.
    pub what: String,
    /// Keypool's time over the other's, of each round.
    pub ratios: Vec<f64>,
    /// The median of the ratios.
    pub ratio_median: f64,
    /// Keypool's median, in milliseconds.
    pub keypool_ms: f64,
    /// The other's median, in milliseconds.
    pub other_ms: f64,
}

impl Comparison {
    /// From the rounds, each with Keypool's time and the other's.
    pub fn of(what: String, rounds: &[(Duration, Duration)]) -> Self {
        let ratios: Vec<_> =
            rounds.iter().map(|(keypool, other)| keypool.as_secs_f64() / other.as_secs_f64()).collect();
        let milliseconds = |part: fn(&(Duration, Duration)) -> Duration| {
            median(rounds.iter().map(|round| part(round).as_secs_f64() * 1e3))
        };
        Self {
            what,
            ratio_median: median(ratios.iter().copied()),
            ratios,
            keypool_ms: milliseconds(|round| round.0),
            other_ms: milliseconds(|round| round.1),
        }
    }
}

/// How long something took, over and over.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Waits {
    /// The median, in milliseconds.
    pub median_ms: f64,
    /// The longest, in milliseconds.
    pub longest_ms: f64,
    /// How often it was measured.
    pub rounds: usize,
}

impl Waits {
    pub fn of(waits: &[Duration]) -> Self {
        let milliseconds: Vec<_> = waits.iter().map(|wait| wait.as_secs_f64() * 1e3).collect();
        Self {
            median_ms: median(milliseconds.iter().copied()),
            longest_ms: milliseconds.iter().copied().fold(0.0, f64::max),
            rounds: waits.len(),
        }
    }
}

pub(crate) fn print_waits(waits: &Waits, json: bool) -> anyhow::Result<()> {
    let text = if json {
        serde_json::to_string_pretty(waits)?
    } else {
        let Waits { median_ms, longest_ms, rounds } = waits;
        format!(
            "woken {median_ms:.1} ms after the answer to who sent it (median of {rounds}), at most {longest_ms:.1} ms"
        )
    };
    writeln!(io::stdout(), "{text}")?;
    Ok(())
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Prints what was found as JSON, or as the text that people read.
pub(crate) fn print_findings<T: Serialize>(
    findings: &T,
    json: bool,
    text: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    let text = if json { serde_json::to_string_pretty(findings)? } else { text(findings) };
    writeln!(io::stdout(), "{text}")?;
    Ok(())
}

pub(crate) fn print(comparisons: &[Comparison], json: bool) -> anyhow::Result<()> {
    let text = if json { serde_json::to_string_pretty(comparisons)? } else { table(comparisons) };
    writeln!(io::stdout(), "{text}")?;
    Ok(())
}

fn table(comparisons: &[Comparison]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(["", "Keypool ms", "other ms", "ratio", "lowest", "highest"]);
    for comparison in comparisons {
        let extreme = |pick: fn(f64, f64) -> f64| comparison.ratios.iter().copied().reduce(pick).unwrap_or(f64::NAN);
        let numbers = [
            (comparison.keypool_ms, 1),
            (comparison.other_ms, 1),
            (comparison.ratio_median, 2),
            (extreme(f64::min), 2),
            (extreme(f64::max), 2),
        ];
        let numbers = numbers.map(|(number, digits)| format!("{number:.digits$}"));
        table.add_row(std::iter::once(comparison.what.clone()).chain(numbers));
    }
    table.to_string()
}
