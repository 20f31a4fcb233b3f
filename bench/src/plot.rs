//! Draws latencies by percentile.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::{
    load::{Measured, Outcome},
    report::as_f64,
};

const SIZE: (u32, u32) = (960, 540);

const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
];

/// Draws a curve for each kind of request into an SVG file. Each step to the right is one more nine of the percentile,
/// so that rare latencies get as much width as usual ones.
pub(crate) fn draw(file: &Path, measured: &Measured) -> Result<()> {
    let curves: Vec<_> = measured.by_kind.iter().map(|(kind, outcome)| (kind.name(), curve(outcome))).collect();
    let points = || curves.iter().flat_map(|(_, curve)| curve);
    let nines = points().map(|point| point.0).fold(1.0, f64::max);
    let (fastest, slowest) = points().fold((f64::MAX, 0.0_f64), |(low, high), (_, ms)| (low.min(*ms), high.max(*ms)));
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("Latency by percentile", ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..nines, (fastest * 0.9..slowest * 1.1).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("percentile")
        .y_desc("ms")
        .x_label_formatter(&|nines| percentile(*nines))
        .y_label_formatter(&ToString::to_string)
        .light_line_style(WHITE)
        .draw()?;
    for ((name, curve), colour) in curves.iter().zip(COLOURS) {
        let line = LineSeries::new(curve.iter().copied(), colour.stroke_width(2));
        let key = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2));
        chart.draw_series(line)?.label(*name).legend(key);
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present().map_err(|error| anyhow!("{error}"))
}

/// Nines of the percentile, and milliseconds. The curve ends at a single request.
fn curve(outcome: &Outcome) -> Vec<(f64, f64)> {
    let last = as_f64(outcome.latency.len()).log10();
    let steps = outcome.latency.iter_quantiles(10);
    let curve = steps.map(|step| (-(1.0 - step.quantile()).log10(), as_f64(step.value_iterated_to()) / 1e3));
    curve.map(|(nines, ms)| (nines.min(last).max(0.0), ms)).collect()
}

/// `0%`, `90%`, `99%` for 0, 1, 2 nines, and no label between them.
fn percentile(nines: f64) -> String {
    if (nines - nines.round()).abs() > 1e-6 {
        return String::new();
    }
    let percent = 100.0 * (1.0 - 10.0_f64.powf(-nines));
    let digits = (nines.round() - 2.0).max(0.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a handful of nines")]
    let digits = digits as usize;
    format!("{percent:.digits$}%")
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use hdrhistogram::Histogram;

    use super::*;
    use crate::requests::Kind;

    #[test]
    fn a_curve_ends_at_its_slowest_request() {
        let mut latency = Histogram::new(3).unwrap();
        latency.record_n(2_000, 999).unwrap();
        latency.record(500_000).unwrap();
        let outcome = Outcome { done: 1_000, refused: [].into(), latency };
        let points = curve(&outcome);
        let (nines, slowest) = *points.last().unwrap();
        assert!((nines - 3.0).abs() < 0.01 && (slowest - 500.0).abs() < 1.0, "{nines} {slowest}");
        assert!(points.is_sorted_by(|one, other| one.0 <= other.0));
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("latency.svg");
        let by_kind = [(Kind::Reserve, outcome)].into();
        draw(&file, &Measured { took: Duration::from_secs(1), by_kind, used_up: false }).unwrap();
        let svg = fs::read_to_string(file).unwrap();
        for part in ["reserve", "99%", "Latency by percentile", "</svg>"] {
            assert!(svg.contains(part), "{part}");
        }
    }

    #[test]
    fn nines_are_written_as_percentiles() {
        assert_eq!([0.0, 1.0, 1.5, 2.0, 3.0, 4.0].map(percentile), ["0%", "90%", "", "99%", "99.9%", "99.99%"]);
    }
}
