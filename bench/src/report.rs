//! The findings of a measurement in turns.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
    io::{self, Write},
    iter,
    time::Duration,
};

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;

/// Two ways to do the same task, measured in turns.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Comparison {
    /// The task.
    pub what: String,
    /// Keypool's time over the baseline's, of each round.
    pub ratios: Vec<f64>,
    /// The median of the ratios.
    pub ratio_median: f64,
    /// Keypool's median, in milliseconds.
    pub keypool_ms: f64,
    /// The baseline's median, in milliseconds.
    pub other_ms: f64,
}

impl Comparison {
    /// Computed from the rounds, each with Keypool's time and the baseline's.
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

/// Repeated measurements of a duration.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Waits {
    /// The median, in milliseconds.
    pub median_ms: f64,
    /// The longest, in milliseconds.
    pub longest_ms: f64,
    /// The number of measurements.
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

impl Display for Waits {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { median_ms, longest_ms, rounds } = self;
        write!(
            f,
            "woken {median_ms:.1} ms after the answer to who sent it (median of {rounds}), at most {longest_ms:.1} ms"
        )
    }
}

/// One figure, measured in two ways, round by round.
#[derive(Debug, Serialize)]
pub(crate) struct Rounds {
    #[serde(skip)]
    names: [&'static str; 2],
    /// The ratio of the first to the second figure, of each round.
    ratios: Vec<f64>,
    /// Their median.
    ratio_median: f64,
    /// The figures of both, by name.
    #[serde(flatten)]
    figures: BTreeMap<&'static str, Vec<f64>>,
}

impl Rounds {
    /// Compares two ways, given by their names in JSON.
    pub(crate) fn between(names: [&'static str; 2]) -> Self {
        let figures = names.map(|name| (name, Vec::new())).into();
        Self { names, ratios: Vec::new(), ratio_median: f64::NAN, figures }
    }

    pub(crate) fn add(&mut self, one: f64, other: f64) {
        for (name, figure) in self.names.into_iter().zip([one, other]) {
            self.figures.entry(name).or_default().push(figure);
        }
        self.ratios.push(one / other);
        self.ratio_median = median(self.ratios.iter().copied());
    }

    /// The medians of both and of the ratio, and the lowest and the highest ratio.
    pub(crate) fn figures(&self) -> [f64; 5] {
        let [one, other] = self.names.map(|name| median(self.figures[name].iter().copied()));
        [one, other, self.ratio_median, lowest(&self.ratios), highest(&self.ratios)]
    }
}

/// A table with a named row for each.
pub(crate) fn rounds<'a>(rows: impl IntoIterator<Item = (&'a str, &'a Rounds)>) -> Table {
    let mut table = table(["", "median", "beside it", "ratio", "lowest", "highest"]);
    for (text, rounds) in rows {
        let figures = rounds.figures().map(|figure| format!("{figure:.2}"));
        table.add_row(iter::once(text.to_owned()).chain(figures));
    }
    table
}

#[expect(clippy::cast_precision_loss, reason = "counts and microseconds of a measurement are far from 2^52")]
pub(crate) fn as_f64(number: u64) -> f64 {
    number as f64
}

pub(crate) fn lowest(values: &[f64]) -> f64 {
    values.iter().copied().reduce(f64::min).unwrap_or(f64::NAN)
}

pub(crate) fn highest(values: &[f64]) -> f64 {
    values.iter().copied().reduce(f64::max).unwrap_or(f64::NAN)
}

pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    f64::midpoint(middle(values.len().saturating_sub(1) / 2), middle(values.len() / 2))
}

/// Prints the findings as JSON, or as text for people.
pub(crate) fn print<T: Serialize>(found: &T, json: bool, text: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
    let text = if json { serde_json::to_string_pretty(found)? } else { text(found) };
    writeln!(io::stdout(), "{text}")?;
    Ok(())
}

/// A table with this header.
pub(crate) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    table
}

/// A table with a row for each.
pub(crate) fn comparisons(comparisons: &[Comparison]) -> String {
    let mut table = table(["", "Keypool ms", "other ms", "ratio", "lowest", "highest"]);
    for comparison in comparisons {
        let numbers = [
            (comparison.keypool_ms, 1),
            (comparison.other_ms, 1),
            (comparison.ratio_median, 2),
            (lowest(&comparison.ratios), 2),
            (highest(&comparison.ratios), 2),
        ];
        let numbers = numbers.map(|(number, digits)| format!("{number:.digits$}"));
        table.add_row(iter::once(comparison.what.clone()).chain(numbers));
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_of_the_sorted_and_of_an_even_count_between_the_two() {
        assert!((median([9.0, 1.0, 5.0].into_iter()) - 5.0).abs() < f64::EPSILON);
        assert!((median([4.0, 1.0, 2.0, 9.0].into_iter()) - 3.0).abs() < f64::EPSILON);
        assert!(median(iter::empty()).is_nan());
    }

    #[test]
    fn rounds_keep_their_shape_in_json() {
        let mut rounds = Rounds::between(["keypool", "pgbench"]);
        rounds.add(6.0, 4.0);
        rounds.add(2.0, 4.0);
        rounds.add(4.0, 4.0);
        let json = serde_json::json!({
            "ratios": [1.5, 0.5, 1.0], "ratio_median": 1.0, "keypool": [6.0, 2.0, 4.0], "pgbench": [4.0, 4.0, 4.0]
        });
        assert_eq!(serde_json::to_value(&rounds).unwrap(), json);
        assert!(super::rounds([("reserve", &rounds)]).to_string().contains("1.50"));
    }
}
