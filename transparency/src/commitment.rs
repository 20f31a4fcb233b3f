//! Commitments of leaves: what a step was, hidden by salts, and the openings that show it, in two levels.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::{
    encoding::{Flaw, Hash, Malformed, Reader, base64, from_base64, json_text, put_v16},
    leaf::Leaf,
    package::{Bind, PackageId, ReservationId, Step, Tag},
};

/// What happened in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// An adder reserved the package.
    Reserve = 1,
    /// The adder spent it.
    Spend = 2,
    /// The adder gave it back.
    Release = 3,
    /// The reservation's time ran out.
    Lapse = 4,
    /// The owner withdrew the package.
    Revoke = 5,
}

impl Event {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Reserve, Self::Spend, Self::Release, Self::Lapse, Self::Revoke].into_iter().find(|e| *e as u8 == byte)
    }

    /// Whether a leaf of this step may hold this event.
    #[must_use]
    pub fn fits(self, step: &Step) -> bool {
        match step {
            Step::Open(_) | Step::Use(_) => self == Self::Reserve,
            Step::End(_) => self != Self::Reserve,
            Step::Used(_) => self == Self::Spend,
        }
    }
}

/// The first level of an opening: what happened to which package, and when. Adders see it of earlier hand-outs.
#[derive(Clone, PartialEq, Eq)]
pub struct Details {
    /// The key of the commitment.
    pub salt: [u8; 32],
    /// What happened.
    pub event: Event,
    /// The package.
    pub package: PackageId,
    /// The number of the hand-out; 0 for a last resort.
    pub n: u32,
    /// The owner, `user/device`.
    pub owner: String,
    /// When it happened, in Unix seconds.
    pub at: u64,
    /// When the reservation ends, in Unix seconds; 0 where nothing is reserved.
    pub until: u64,
    /// The commitment to the second level.
    pub actor_commit: Hash,
}

/// The second level of an opening: who did it, for which group. The owner and the adder itself see it.
#[derive(Clone, PartialEq, Eq)]
pub struct Actor {
    /// The key of the commitment.
    pub salt: [u8; 32],
    /// The device that holds or held the reservation, `user/device`; empty where nobody does.
    pub actor: String,
    /// The group for which it is; empty where there is none.
    pub group_id: Vec<u8>,
    /// The reservation; zero where there is none.
    pub reservation_id: ReservationId,
    /// The random bytes that the adder drew for the reservation; zero where there are none.
    pub bind: Bind,
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Hash {
    // HMAC itself pads keys with zeroes to its block of 64 bytes.
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    let mut mac = Hmac::<Sha256>::new(&block.into());
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

impl Details {
    fn message(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(87 + self.owner.len());
        bytes.push(self.event as u8);
        bytes.extend(self.package.0);
        bytes.extend(self.n.to_be_bytes());
        put_v16(&mut bytes, self.owner.as_bytes());
        bytes.extend(self.at.to_be_bytes());
        bytes.extend(self.until.to_be_bytes());
        bytes.extend(self.actor_commit);
        bytes
    }

    /// The commitment that these open.
    #[must_use]
    pub fn commitment(&self) -> Hash {
        hmac(&self.salt, &[&self.message()])
    }

    /// The salt, and the message of the commitment.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.salt[..], &self.message()].concat()
    }

    /// Reads [`Self::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("details of an opening", bytes);
        let salt = reader.array()?;
        let event = Event::from_byte(reader.u8()?).ok_or_else(|| reader.error(Flaw::Other("its event is unknown")))?;
        let details = Self {
            salt,
            event,
            package: PackageId(reader.array()?),
            n: reader.u32()?,
            owner: reader.text16()?,
            at: reader.u64()?,
            until: reader.u64()?,
            actor_commit: reader.array()?,
        };
        reader.end()?;
        Ok(details)
    }

    /// Checks that these open the leaf of a step.
    pub fn open(&self, leaf: &Leaf, step: &Step) -> Result<(), WrongOpening> {
        match () {
            () if leaf.tag() != step.tag(&self.package) => Err(WrongOpening::Tag),
            () if !self.event.fits(step) => Err(WrongOpening::Event),
            () if self.n != step.n() => Err(WrongOpening::Number),
            () if self.commitment() != leaf.commitment() => Err(WrongOpening::Commitment),
            () => Ok(()),
        }
    }
}

impl Actor {
    fn message(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(60 + self.actor.len() + self.group_id.len());
        put_v16(&mut bytes, self.actor.as_bytes());
        put_v16(&mut bytes, &self.group_id);
        bytes.extend(self.reservation_id.0);
        bytes.extend(self.bind.0);
        bytes
    }

    /// The commitment that these open.
    #[must_use]
    pub fn commitment(&self) -> Hash {
        hmac(&self.salt, &[&self.message()])
    }

    /// The salt, and the message of the commitment.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.salt[..], &self.message()].concat()
    }

    /// Reads [`Self::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("actor of an opening", bytes);
        let actor = Self {
            salt: reader.array()?,
            actor: reader.text16()?,
            group_id: reader.v16()?.to_vec(),
            reservation_id: ReservationId(reader.array()?),
            bind: Bind(reader.array()?),
        };
        reader.end()?;
        Ok(actor)
    }
}

/// A reader of a salt can test guesses of what the commitment hides, so `Debug` leaves salts out.
impl fmt::Debug for Details {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { event, package, n, owner, at, until, .. } = self;
        write!(f, "Details({event:?} {n} of {package:?}, owner {owner:?}, at {at}, until {until})")
    }
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Actor({:?}, {:?})", self.actor, self.reservation_id)
    }
}

/// Makes a type base64 of its bytes in JSON.
macro_rules! bytes_text {
    ($name:ident, $what:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&base64(&self.to_bytes()))
            }
        }

        impl std::str::FromStr for $name {
            type Err = Malformed;

            fn from_str(text: &str) -> Result<Self, Malformed> {
                Self::from_bytes(&from_base64($what, text)?)
            }
        }

        json_text!($name);
    };
}

bytes_text!(Details, "details of an opening");
bytes_text!(Actor, "actor of an opening");

/// Shows what a leaf commits to: its first level, and the second where the reader may see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opening {
    /// The first level.
    pub details: Details,
    /// The second level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
}

/// Why an opening does not open a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongOpening {
    /// The leaf has the tag of another step or package.
    #[error("the opening is of another tag than the leaf")]
    Tag,
    /// A leaf with this tag cannot hold this event.
    #[error("the opening shows an event that does not fit the tag")]
    Event,
    /// The opening shows another number than the tag.
    #[error("the opening shows another number of the hand-out than the tag")]
    Number,
    /// The commitment of the leaf is another one.
    #[error("the opening does not match the leaf's commitment")]
    Commitment,
    /// The second level does not match the first.
    #[error("the opening's actor does not match its details")]
    Actor,
}

impl Opening {
    /// Checks that this opens the leaf of a step.
    pub fn open(&self, leaf: &Leaf, step: &Step) -> Result<(), WrongOpening> {
        self.details.open(leaf, step)?;
        let Some(actor) = &self.actor else { return Ok(()) };
        let fits_tag = match step {
            Step::Use(id) | Step::Used(id) => actor.reservation_id == *id,
            Step::Open(_) | Step::End(_) => true,
        };
        if fits_tag && actor.commitment() == self.details.actor_commit { Ok(()) } else { Err(WrongOpening::Actor) }
    }

    /// The step of this opening whose tag a leaf has, if any. A last resort's tag needs the second level.
    #[must_use]
    pub fn step_of(&self, leaf: &Leaf) -> Option<Step> {
        let n = self.details.n;
        let reservation = self.actor.as_ref().map(|actor| actor.reservation_id);
        let last_resort = reservation.into_iter().flat_map(|id| [Step::Use(id), Step::Used(id)]);
        [Step::Open(n), Step::End(n)]
            .into_iter()
            .chain(last_resort)
            .find(|step| step.tag(&self.details.package) == leaf.tag())
    }

    /// The same without the second level, for those who may not see it.
    #[must_use]
    pub fn first_level(&self) -> Self {
        Self { details: self.details.clone(), actor: None }
    }
}

/// The secret of an owner's device from which the salts of its leaves are derived.
#[derive(Clone)]
pub struct LogSecret(pub [u8; 32]);

impl fmt::Debug for LogSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogSecret(..)")
    }
}

/// What a leaf is made from: a row of the trail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What happened.
    pub event: Event,
    /// The package.
    pub package: PackageId,
    /// The owner, `user/device`.
    pub owner: String,
    /// When it happened, in Unix seconds.
    pub at: u64,
    /// When the reservation ends, in Unix seconds; 0 where nothing is reserved.
    pub until: u64,
    /// The device that holds or held the reservation, `user/device`; empty where nobody does.
    pub actor: String,
    /// The group for which it is; empty where there is none.
    pub group_id: Vec<u8>,
    /// The reservation; zero where there is none.
    pub reservation_id: ReservationId,
    /// The random bytes of the adder; zero where there are none.
    pub bind: Bind,
}

impl LogSecret {
    /// The salt of a level, 1 or 2, of the leaf with this tag.
    #[must_use]
    pub fn salt(&self, tag: &Tag, level: u8) -> [u8; 32] {
        hmac(&self.0, &[&tag.0, &[level]])
    }

    /// Makes the leaf of a step, and its opening: the same for the same record.
    #[must_use]
    pub fn seal(&self, step: &Step, record: &Record) -> (Leaf, Opening) {
        let tag = step.tag(&record.package);
        let actor = Actor {
            salt: self.salt(&tag, 2),
            actor: record.actor.clone(),
            group_id: record.group_id.clone(),
            reservation_id: record.reservation_id,
            bind: record.bind,
        };
        let details = Details {
            salt: self.salt(&tag, 1),
            event: record.event,
            package: record.package,
            n: step.n(),
            owner: record.owner.clone(),
            at: record.at,
            until: record.until,
            actor_commit: actor.commitment(),
        };
        (Leaf::new(&tag, &details.commitment()), Opening { details, actor: Some(actor) })
    }
}
