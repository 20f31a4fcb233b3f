//! Results: what a command found, its exit code, and how it is written.

use std::{
    fmt, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use keypool_transparency::evidence::EvidenceFile;
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;

/// What a command found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Found {
    /// All is as it has to be.
    Good,
    /// The server did wrong, and others can verify it.
    Misbehaviour,
    /// Something is wrong that cannot be proven to others.
    Report,
    /// Something is missing.
    CannotTell,
}

impl Found {
    /// 0 good, 1 misbehaviour proven, 3 cannot tell or cannot prove. 2 is for a wrong command line.
    pub fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Good => 0,
            Self::Misbehaviour => 1,
            Self::Report | Self::CannotTell => 3,
        })
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Good => "good",
            Self::Misbehaviour => "misbehaviour proven",
            Self::Report => "wrong, and not proven to others",
            Self::CannotTell => "cannot tell",
        })
    }
}

/// A command's result.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// What it found.
    pub result: Found,
    /// What that means here.
    pub reason: String,
    /// Where it wrote evidence.
    pub evidence: Option<PathBuf>,
    /// Names and values, in the order in which they are shown.
    pub details: Vec<(&'static str, Value)>,
}

/// One object: result, reason, evidence and details.
impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("result", &self.result)?;
        map.serialize_entry("reason", &self.reason)?;
        if let Some(evidence) = &self.evidence {
            map.serialize_entry("evidence", evidence)?;
        }
        for (name, value) in &self.details {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl Report {
    /// A result without details.
    pub fn new(result: Found, reason: impl fmt::Display) -> Self {
        Self { result, reason: reason.to_string(), evidence: None, details: Vec::new() }
    }

    /// Adds a detail.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.details.push((name, value.into()));
        self
    }

    /// A proven misbehaviour: writes its evidence.
    pub fn proven(reason: impl fmt::Display, evidence: &EvidenceFile, file: &Path) -> Self {
        let mut report = Self::new(Found::Misbehaviour, reason);
        match fs::write(file, evidence.to_json()) {
            Ok(()) => report.evidence = Some(file.to_owned()),
            Err(error) => report = report.with("not_written", format!("{}: {error}", file.display())),
        }
        report
    }

    /// Writes it to standard output: as text, or as one line of JSON.
    pub fn print(&self, json: bool) {
        let text = if json { serde_json::to_string(self).unwrap_or_default() + "\n" } else { self.to_string() };
        // A reader that has gone away needs no answer.
        let _ = io::stdout().write_all(text.as_bytes());
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.result, self.reason)?;
        if let Some(evidence) = &self.evidence {
            writeln!(f, "evidence: {}", evidence.display())?;
        }
        for (name, value) in &self.details {
            match value {
                Value::String(text) => writeln!(f, "{name}: {}", text.trim_end())?,
                Value::Array(values) => {
                    for value in values {
                        writeln!(f, "{name}: {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))?;
                    }
                }
                value => writeln!(f, "{name}: {value}")?,
            }
        }
        Ok(())
    }
}
