//! The commands: each reads files and gives a report.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use keypool_transparency::{
    adder,
    answers::{BadAnswers, CheckedAnswers},
    checkpoint::BadNote,
    contradiction::MAX_HAND_OUTS,
    encoding::{Malformed, from_json},
    evidence::EvidenceFile,
    files::{self, HandOutsFile, ProofFile},
    key_package::{self, KeyPackageFields},
    note::{Note, VerifierKey},
    origin::BadKeyNote,
    owner::{self, OwnPackage},
    package::{PackageId, Step},
    policy::Policy,
    verdict::Verdict,
    verification::{Outcome, verify},
};

use crate::{
    audit::{Audit, AuditError},
    command_line::{AuditArgs, EvidenceArgs, HandoutsArgs, ProofArgs, Trust},
    output::{Found, Report},
    state::{State, StateDirectory, StateError},
};

/// Why a command cannot give a result.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// A file cannot be read.
    #[error("{0}: {1}")]
    File(PathBuf, io::Error),
    /// A file is not JSON of its format.
    #[error("{0}: {1}")]
    Json(PathBuf, serde_json::Error),
    /// A file is malformed.
    #[error("{0}: {1}")]
    Malformed(PathBuf, Malformed),
    /// No policy and no key was given.
    #[error("give the log's key with --policy or --vkey")]
    NoTrust,
    /// A key note is not believed.
    #[error("a key note of the file: {0}")]
    KeyNote(#[from] BadKeyNote),
    /// The answers in a file are not believed.
    #[error("the server's answers in the file: {0}")]
    Answers(#[from] BadAnswers),
    /// The audit cannot go on.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The state of an audit cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// There is no audit in the directory.
    #[error("{0} has no state of an audit")]
    NoState(PathBuf),
}

impl CommandError {
    /// Whether the command line is wrong, not what was read.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::NoTrust | Self::File(..) | Self::NoState(_) | Self::Malformed(..) | Self::Audit(AuditError::NoKey)
        )
    }
}

fn read(path: &Path, max_size: usize) -> Result<Vec<u8>, CommandError> {
    let mut bytes = Vec::new();
    let mut read = || File::open(path)?.take(max_size as u64 + 1).read_to_end(&mut bytes);
    read().map_err(|error| CommandError::File(path.to_owned(), error))?;
    Ok(bytes)
}

fn read_json<T: for<'a> serde::Deserialize<'a>>(path: &Path, max_size: usize) -> Result<T, CommandError> {
    from_json(&read(path, max_size)?, max_size).map_err(|error| CommandError::Json(path.to_owned(), error))
}

impl Trust {
    fn policy(&self) -> Result<Option<Policy>, CommandError> {
        let mut policy = match &self.policy {
            Some(path) => {
                let text = fs::read_to_string(path).map_err(|error| CommandError::File(path.clone(), error))?;
                Some(text.parse().map_err(|error| CommandError::Malformed(path.clone(), error))?)
            }
            None => None,
        };
        if let Some(key) = &self.vkey {
            let policy = policy.get_or_insert_with(|| Policy::of_logs([]));
            policy.logs.extend(Policy::of_logs([key.clone()]).logs);
        }
        Ok(policy)
    }

    fn required(&self, key_notes: &[Note]) -> Result<Policy, CommandError> {
        let mut policy = self.policy()?.ok_or(CommandError::NoTrust)?;
        for note in key_notes {
            policy.follow(note)?;
        }
        Ok(policy)
    }
}

/// Checks evidence.
pub fn evidence(args: &EvidenceArgs) -> Result<Report, CommandError> {
    let file: EvidenceFile = read_json(&args.file, keypool_transparency::evidence::MAX_SIZE)?;
    let policy = args.trust.required(&[])?;
    Ok(match verify(&file, &policy) {
        Outcome::Proven(kind) => Report::new(Found::Misbehaviour, kind)
            .with("kind", kind as u8)
            .with("name", serde_json::to_value(kind).unwrap_or_default()),
        Outcome::Invalid(why) => Report::new(Found::CannotTell, format!("the evidence proves nothing: {why}")),
        Outcome::CannotTell(why) => Report::new(Found::CannotTell, why),
    })
}

/// Turns the verdict of a check into a report. Nothing is good under a checkpoint that the policy does not accept.
fn report(verdict: Verdict, good: &str, checkpoint: &Note, policy: &Policy, out: &Path) -> Report {
    match verdict {
        Verdict::Fine => match policy.accept(checkpoint) {
            Ok(_) => Report::new(Found::Good, good),
            Err(why) => Report::new(Found::CannotTell, why),
        },
        Verdict::Proven { problem, evidence } => Report::proven(problem, &evidence, out),
        Verdict::Report(problem) => {
            let accused = if problem.accuses_server() { "server" } else { "nobody" };
            Report::new(Found::Report, problem).with("accused", accused)
        }
        Verdict::CannotTell(unknown) => Report::new(Found::CannotTell, unknown),
    }
}

/// Checks an adder's hand-out.
pub fn proof(args: &ProofArgs) -> Result<Report, CommandError> {
    let mut file: ProofFile = read_json(&args.file, files::MAX_SIZE)?;
    let policy = args.trust.required(&file.key_notes)?;
    let bytes = read(&args.keypackage, key_package::MAX_SIZE)?;
    let fields =
        KeyPackageFields::parse(&bytes).map_err(|error| CommandError::Malformed(args.keypackage.clone(), error))?;
    // The bind is what the reader knows of its own reservation: the file may come from somebody else.
    file.hand_out.bind = args.bind;
    let answers = file.answers.check(&policy.log_keys())?;
    let verdict = adder::check(&file.hand_out, &fields, &[], &answers, &policy);
    let number = file.hand_out.n.map_or("last resort".to_owned(), |n| n.to_string());
    let good = "this adder alone has the KeyPackage";
    Ok(report(verdict, good, &file.answers.checkpoint, &policy, &args.out)
        .with("package", PackageId::of(&fields).to_string())
        .with("hand_out", number)
        .with("owner", file.hand_out.owner.clone())
        .with("adder", file.hand_out.actor.clone())
        .with("origin", answers.checkpoint.origin.clone())
        .with("size", answers.checkpoint.size))
}

/// Checks an owner's packages.
pub fn handouts(args: &HandoutsArgs) -> Result<Report, CommandError> {
    let file: HandOutsFile = read_json(&args.file, files::MAX_SIZE)?;
    let policy = args.trust.required(&file.key_notes)?;
    let answers = file.answers.check(&policy.log_keys())?;
    let audited = args.state.as_deref().map(Audited::open).transpose()?;
    let mut worst = Report::new(Found::Good, "the log has the hand-outs of the trail, and no other ones");
    let mut lines = Vec::new();
    for own in &file.packages {
        let mut verdict =
            report(owner::check(own, &answers, &policy), "", &file.answers.checkpoint, &policy, &args.out);
        if verdict.result == Found::Good
            && let Some(audited) = &audited
            && let Some(left_out) = audited.left_out(own, &answers)?
        {
            verdict = left_out;
        }
        lines.extend(own.rows.iter().map(|row| describe(own, row)));
        if is_worse(verdict.result, worst.result) {
            worst = verdict.with("package", own.package.to_string());
        }
    }
    Ok(worst
        .with("origin", answers.checkpoint.origin.clone())
        .with("size", answers.checkpoint.size)
        .with("packages", file.packages.len())
        .with("trail", lines))
}

fn describe(own: &OwnPackage, row: &owner::TrailRow) -> String {
    let number = row.n.map_or("last resort".to_owned(), |n| format!("hand-out {n}"));
    let actor = if row.actor.is_empty() { "nobody" } else { &row.actor };
    format!("{} {number}: {:?} by {actor} at {}", own.package, row.event, row.at)
}

/// Proven misbehaviour is worse than a report, and that is worse than a doubt.
fn is_worse(one: Found, other: Found) -> bool {
    let rank = |found| match found {
        Found::Good => 0,
        Found::CannotTell => 1,
        Found::Report => 2,
        Found::Misbehaviour => 3,
    };
    rank(one) > rank(other)
}

/// The files of an audit.
struct Audited {
    directory: StateDirectory,
    state: State,
}

impl Audited {
    fn open(path: &Path) -> Result<Self, CommandError> {
        let directory = StateDirectory::open(path)?;
        let state = directory.load()?.ok_or_else(|| CommandError::NoState(path.to_owned()))?;
        Ok(Self { directory, state })
    }

    /// A hand-out of a package that the log has, and neither the trail nor the answers show.
    fn left_out(&self, own: &OwnPackage, answers: &CheckedAnswers<'_>) -> Result<Option<Report>, CommandError> {
        if self.state.key.name() != answers.checkpoint.origin {
            let error = BadNote::UnknownLog(answers.checkpoint.origin.clone());
            return Err(CommandError::Audit(AuditError::Checkpoint(error)));
        }
        let shown = own.rows.iter().map(owner::TrailRow::step).collect::<Vec<_>>();
        let all = (0..MAX_HAND_OUTS).flat_map(|n| [Step::Open(n), Step::End(n)]);
        for step in all.filter(|step| !shown.contains(step)) {
            let tag = step.tag(&own.package);
            let begin = tag.0.first_chunk().map_or(0, |begin| u64::from_be_bytes(*begin));
            let found = self.state.tags.find(self.directory.path(), begin).map_err(AuditError::Tags)?;
            // What came after the trail was read may be honest.
            if let Some(index) = found.into_iter().find(|index| *index < own.as_of) {
                let reason = "the audited log has a step of the package that the trail leaves out";
                return Ok(Some(Report::new(Found::Report, reason).with("tag", tag.to_string()).with("index", index)));
            }
        }
        Ok(None)
    }
}

/// Audits a log: once, or again and again until something is wrong.
pub fn audit(args: &AuditArgs, show: &dyn Fn(&Report)) -> Result<Report, CommandError> {
    let key = match args.trust.policy()? {
        Some(policy) => Some(only_log(&policy, args.trust.vkey.as_ref())?),
        None => None,
    };
    let progress = |read, size| eprint_line(&format!("{read} of {size} leaves"));
    let mut audit = Audit::open(&args.log, &args.state, key, args.batch, Box::new(progress))?;
    loop {
        let result = audit.pass();
        let Some(seconds) = args.every else { return Ok(result?) };
        match result {
            Ok(report) if report.result == Found::Misbehaviour => return Ok(report),
            Ok(report) => show(&report),
            Err(error) if error.is_lasting() => return Err(error.into()),
            // A server that is down or damaged for a while does not end an audit that goes on.
            Err(error) => show(&Report::new(Found::CannotTell, error)),
        }
        sleep(Duration::from_secs(seconds));
    }
}

/// The log to audit: the one of --vkey, or the only one of the policy.
fn only_log(policy: &Policy, vkey: Option<&VerifierKey>) -> Result<VerifierKey, CommandError> {
    match (vkey, &policy.logs[..]) {
        (Some(key), _) => Ok(key.clone()),
        (None, [log]) => Ok(log.key.clone()),
        (None, _) => Err(CommandError::NoTrust),
    }
}

fn eprint_line(line: &str) {
    let _ = io::Write::write_all(&mut io::stderr(), format!("{line}\n").as_bytes());
}
