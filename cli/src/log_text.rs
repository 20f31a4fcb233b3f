//! What people read about the server's transparency log.

use std::fmt::Write as _;

use keypool_client::{LogReport, LogState, TrailCheck};

use crate::{answers::Exported, colour::warning, tables, text::clean};

/// What a refresh has compared with the log, in one line.
pub fn report_line(LogReport { size, checked, waiting, unknown, .. }: &LogReport) -> String {
    let mut text = format!("Log: {size} leaves");
    for (count, what) in [(checked, "checked"), (waiting, "not in it yet"), (unknown, "no longer provable")] {
        if *count > 0 {
            let _ = write!(text, ", {count} {what}");
        }
    }
    text + "."
}

pub fn log_text(state: &LogState) -> String {
    let Some(origin) = &state.origin else {
        return "The server has shown no transparency log yet; `keypool refresh` looks for one.".to_owned();
    };
    let mut text = tables::text(tables::log(origin, state));
    for finding in &state.findings {
        let dismissed = if finding.is_dismissed { " (dismissed)" } else { "" };
        let _ = write!(text, "\n{}", warning(&clean(&format!("{}: {finding}{dismissed}", finding.found_at))));
    }
    text
}

pub fn trail_text(checks: &[TrailCheck]) -> String {
    let events: usize = checks.iter().map(|check| check.events).sum();
    let agree = checks.iter().filter(|check| check.agrees == Some(true)).count();
    let mut text = format!(
        "{events} events of {} KeyPackages are compared with the log: {agree} KeyPackages agree.",
        checks.len()
    );
    for check in checks {
        if let Some(why) = &check.why {
            let _ = write!(text, "\n{}\n  {}", check.keypackage_ref, clean(why));
        }
    }
    text
}

pub fn exported_text(Exported { files, commands }: &Exported) -> String {
    if files.is_empty() {
        return "Nothing to export: the trail has no event that is in the log.".to_owned();
    }
    let list = files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ");
    format!("Wrote {list}. Check with:\n{}", commands.join("\n"))
}
