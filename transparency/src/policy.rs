//! The parties that a verifier trusts: logs, witnesses and a quorum of them (C2SP tlog-policy).

use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

use crate::{
    checkpoint::{BadNote, Checkpoint},
    encoding::{Flaw, Malformed},
    note::{Note, VerifierKey},
    origin::{BadKeyNote, follow, key_note_origin},
    receipt::Receipt,
};

/// The most bytes of a policy, and the most logs, witnesses and groups together.
const MAX_SIZE: usize = 1 << 20;
const MAX_LINES: usize = 1024;

/// A key, and where its owner answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// The public key.
    pub key: VerifierKey,
    /// The URL, if the policy has one.
    pub url: Option<String>,
}

#[derive(Clone, Debug)]
enum Member {
    Witness(usize),
    Group { threshold: usize, members: Vec<usize> },
}

/// The keys of logs that are believed, by origin.
#[derive(Clone, Debug, Default)]
pub struct LogKeys(BTreeMap<String, VerifierKey>);

/// Why a policy does not accept a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAccepted {
    /// None of the logs has signed it.
    #[error(transparent)]
    Log(#[from] BadNote),
    /// Too few witnesses have cosigned it.
    #[error("too few of the policy's witnesses have cosigned the checkpoint")]
    NoQuorum,
}

/// A trust policy.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The logs.
    pub logs: Vec<Party>,
    /// The witnesses.
    pub witnesses: Vec<Party>,
    members: Vec<Member>,
    /// `None` if no cosignature is required.
    quorum: Option<usize>,
}

impl LogKeys {
    /// Believes one more key, which a user has given.
    pub fn insert(&mut self, key: VerifierKey) {
        self.0.insert(key.name().to_owned(), key);
    }

    /// The key of an origin.
    #[must_use]
    pub fn get(&self, origin: &str) -> Option<&VerifierKey> {
        self.0.get(origin)
    }

    /// Believes the key that the key of an older origin names. A key that is known already stays.
    pub fn follow(&mut self, note: &Note) -> Result<(), BadKeyNote> {
        let origin = key_note_origin(note)?;
        let old = self.0.get(origin).ok_or_else(|| BadKeyNote::Unknown(origin.to_owned()))?;
        let key = follow(old, note)?;
        self.0.entry(key.name().to_owned()).or_insert(key);
        Ok(())
    }

    /// Reads a checkpoint of one of these logs.
    pub fn checkpoint(&self, note: &Note) -> Result<Checkpoint, BadNote> {
        let origin = Checkpoint::unverified(note)?.origin;
        Checkpoint::verified(note, self.get(&origin).ok_or(BadNote::UnknownLog(origin))?)
    }

    /// Reads a receipt of one of these logs.
    pub fn receipt(&self, signed: &str) -> Result<Receipt, BadNote> {
        let origin = Receipt::unverified(signed)?.origin;
        Receipt::verified(signed, self.get(&origin).ok_or(BadNote::UnknownLog(origin))?)
    }
}

impl FromIterator<VerifierKey> for LogKeys {
    fn from_iter<I: IntoIterator<Item = VerifierKey>>(keys: I) -> Self {
        let mut all = Self::default();
        keys.into_iter().for_each(|key| all.insert(key));
        all
    }
}

impl Policy {
    /// A policy that believes these logs and requires no witness.
    #[must_use]
    pub fn of_logs(keys: impl IntoIterator<Item = VerifierKey>) -> Self {
        let logs = keys.into_iter().map(|key| Party { key, url: None }).collect();
        Self { logs, witnesses: Vec::new(), members: Vec::new(), quorum: None }
    }

    /// The keys of the logs.
    #[must_use]
    pub fn log_keys(&self) -> LogKeys {
        self.logs.iter().map(|log| log.key.clone()).collect()
    }

    /// Believes the key that the key of an older origin names.
    pub fn follow(&mut self, note: &Note) -> Result<(), BadKeyNote> {
        let mut keys = self.log_keys();
        keys.follow(note)?;
        let known = self.log_keys();
        let new = keys.0.into_values().filter(|key| known.get(key.name()).is_none());
        self.logs.extend(new.map(|key| Party { key, url: None }));
        Ok(())
    }

    /// Whether a checkpoint without cosignatures is accepted.
    #[must_use]
    pub fn requires_witnesses(&self) -> bool {
        self.quorum.is_some()
    }

    /// Reads a checkpoint that one of the logs has signed and, if the policy says so, enough witnesses have cosigned.
    pub fn accept(&self, note: &Note) -> Result<Checkpoint, NotAccepted> {
        let checkpoint = self.log_keys().checkpoint(note)?;
        let is_witnessed = !self.requires_witnesses() || self.has_quorum(note, |_| true);
        if is_witnessed { Ok(checkpoint) } else { Err(NotAccepted::NoQuorum) }
    }

    /// Whether enough witnesses have cosigned a checkpoint at a time that `accept` accepts. Always false if the policy
    /// requires no witness: then nobody but the log vouches for a time.
    #[must_use]
    pub fn has_quorum(&self, note: &Note, accept: impl Fn(u64) -> bool) -> bool {
        let cosigned = |witness: &Party| note.cosigned_at(&witness.key).is_ok_and(&accept);
        let signed: Vec<bool> = self.witnesses.iter().map(cosigned).collect();
        self.quorum.is_some_and(|quorum| self.is_met(quorum, &signed))
    }

    /// The time at which enough witnesses had cosigned a checkpoint; `None` if they never had, or none is required.
    #[must_use]
    pub fn quorum_time(&self, note: &Note) -> Option<u64> {
        let mut times: Vec<_> =
            self.witnesses.iter().filter_map(|witness| note.cosigned_at(&witness.key).ok()).collect();
        times.sort_unstable();
        times.into_iter().find(|time| self.has_quorum(note, |cosigned| cosigned <= *time))
    }

    /// A group has only members that were defined before it, so this ends.
    fn is_met(&self, member: usize, signed: &[bool]) -> bool {
        match &self.members[member] {
            Member::Witness(witness) => signed[*witness],
            Member::Group { threshold, members } => {
                members.iter().filter(|member| self.is_met(**member, signed)).count() >= *threshold
            }
        }
    }
}

fn wrong(why: &'static str) -> Malformed {
    Malformed::other("policy", why)
}

/// A policy while its lines are read.
struct Builder {
    policy: Policy,
    names: BTreeMap<String, usize>,
    grouped: BTreeSet<usize>,
    has_quorum: bool,
}

impl Builder {
    fn line(&mut self, words: &[&str]) -> Result<(), Malformed> {
        match words {
            ["log", key] => self.log(key, None),
            ["log", key, url] => self.log(key, Some(url)),
            ["witness", name, key] => self.witness(name, key, None),
            ["witness", name, key, url] => self.witness(name, key, Some(url)),
            ["group", name, threshold, members @ ..] => self.group(name, threshold, members),
            ["quorum", name] => self.quorum(name),
            _ => Err(wrong("a line is none of log, witness, group and quorum with their parts")),
        }
    }

    fn log(&mut self, key: &str, url: Option<&&str>) -> Result<(), Malformed> {
        let log = party(key, url)?;
        if !log.key.signs_notes() {
            return Err(wrong("the key of a log does not sign notes"));
        }
        push_once(&mut self.policy.logs, log)
    }

    fn witness(&mut self, name: &str, key: &str, url: Option<&&str>) -> Result<(), Malformed> {
        let witness = party(key, url)?;
        if !witness.key.cosigns() {
            return Err(wrong("the key of a witness does not cosign"));
        }
        push_once(&mut self.policy.witnesses, witness)?;
        self.define(name, Member::Witness(self.policy.witnesses.len() - 1))
    }

    fn group(&mut self, name: &str, threshold: &str, members: &[&str]) -> Result<(), Malformed> {
        let members: Vec<_> = members.iter().map(|member| self.named(member)).collect::<Result<_, _>>()?;
        let threshold = match threshold {
            "any" => 1,
            "all" => members.len(),
            k => k
                .parse()
                .ok()
                .filter(|k: &usize| k.to_string() == threshold)
                .ok_or_else(|| wrong("a threshold is no number"))?,
        };
        if !(1..=members.len()).contains(&threshold) {
            return Err(wrong("a threshold is not between 1 and the number of members"));
        }
        if !members.iter().all(|member| self.grouped.insert(*member)) {
            return Err(wrong("a name is a member twice"));
        }
        self.define(name, Member::Group { threshold, members })
    }

    fn quorum(&mut self, name: &str) -> Result<(), Malformed> {
        if std::mem::replace(&mut self.has_quorum, true) {
            return Err(wrong("it has two quorum lines"));
        }
        self.policy.quorum = if name == "none" { None } else { Some(self.named(name)?) };
        Ok(())
    }

    fn named(&self, name: &str) -> Result<usize, Malformed> {
        self.names.get(name).copied().ok_or_else(|| wrong("a name is not defined on an earlier line"))
    }

    fn define(&mut self, name: &str, member: Member) -> Result<(), Malformed> {
        self.policy.members.push(member);
        if name == "none" || self.names.insert(name.to_owned(), self.policy.members.len() - 1).is_some() {
            return Err(wrong("a name is defined twice, or is none"));
        }
        Ok(())
    }
}

fn party(key: &str, url: Option<&&str>) -> Result<Party, Malformed> {
    Ok(Party { key: key.parse()?, url: url.map(|url| (*url).to_owned()) })
}

fn push_once(parties: &mut Vec<Party>, party: Party) -> Result<(), Malformed> {
    if parties.iter().any(|other| other.key.public_key() == party.key.public_key()) {
        return Err(wrong("two lines have one public key"));
    }
    parties.push(party);
    Ok(())
}

impl FromStr for Policy {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text.len() > MAX_SIZE {
            return Err(Malformed::new("policy", Flaw::TooLong(MAX_SIZE)));
        }
        if text.contains(|c: char| c == '\u{7f}' || c < ' ' && c != '\n' && c != '\t') {
            return Err(wrong("it has a control character"));
        }
        let (names, grouped, policy) = (BTreeMap::new(), BTreeSet::new(), Self::of_logs([]));
        let mut builder = Builder { policy, names, grouped, has_quorum: false };
        let lines = text.split('\n').map(|line| line.trim_matches([' ', '\t']));
        let lines: Vec<_> = lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        if lines.len() > MAX_LINES {
            return Err(wrong("it has more than 1024 lines"));
        }
        for line in lines {
            let words: Vec<_> = line.split([' ', '\t']).filter(|word| !word.is_empty()).collect();
            builder.line(&words)?;
        }
        if builder.has_quorum { Ok(builder.policy) } else { Err(wrong("it has no quorum line")) }
    }
}
