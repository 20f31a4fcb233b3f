//! Divides a queue's capacity among senders, so that no sender can fill it for all others.
//!
//! A queue has a part that all senders share, and two reserved parts: one for Commits with a member's proof, and one
//! for Welcomes that spend a reservation of the device. One user may use at most an eighth of each part. So a sender
//! who fills a part blocks neither the device's groups nor its invitations.

use std::collections::{HashMap, HashSet};

use diesel::{dsl::sum, prelude::*};

use crate::store::database::{Conn, StoreError, schema::deliveries, sql::statements};

/// So many bytes of a message cost as much as one more message.
pub(crate) const UNIT: usize = 8 * 1024;

/// The share of each part that one user may use, as a divisor.
const SHARE: i64 = 8;

/// A part of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    /// Shared by all senders.
    Common,
    /// Reserved for Commits with a member's proof.
    Commits,
    /// Reserved for Welcomes that spend a reservation.
    Welcomes,
}

impl Part {
    pub(crate) fn number(self) -> i16 {
        match self {
            Self::Common => 0,
            Self::Commits => 1,
            Self::Welcomes => 2,
        }
    }

    /// The part's size in units, in a queue of this capacity.
    fn holds(self, capacity: u32) -> i64 {
        match self {
            Self::Common => capacity.into(),
            Self::Commits | Self::Welcomes => i64::from(capacity) / 2,
        }
    }
}

/// The cost of a message in units.
pub(super) fn cost(message: &[u8]) -> i32 {
    i32::try_from(1 + message.len() / UNIT).unwrap_or(i32::MAX)
}

/// Recipient, part, sender, and total cost of the queued messages.
type UsedColumns = (i64, i16, Option<i64>, Option<i64>);

statements! {
    pub(super) fn queue_use(conn, devices: &[i64]) -> QueryResult<Vec<UsedColumns>> {
        let of = (deliveries::device_id, deliveries::part, deliveries::sender);
        deliveries::table
            .filter(deliveries::device_id.eq_any(devices))
            .group_by(of)
            .select((deliveries::device_id, deliveries::part, deliveries::sender, sum(deliveries::cost)))
            .load(conn)
    }
}

/// The used capacity of some devices' queues, in total and by one user.
pub(super) struct Shares {
    capacity: u32,
    /// Units used by all senders and by this user, by device and part.
    taken: HashMap<(i64, i16), (i64, i64)>,
}

impl Shares {
    /// Reads the used capacity of these devices' queues. `own` are the devices of the sender's user.
    pub(super) fn of(
        conn: &mut Conn<'_>,
        devices: &[i64],
        own: &HashSet<i64>,
        capacity: u32,
    ) -> Result<Self, StoreError> {
        let mut taken: HashMap<_, (i64, i64)> = HashMap::new();
        for (device, part, sender, cost) in queue_use(conn, devices)? {
            let cost = cost.unwrap_or_default();
            let (all, users) = taken.entry((device, part)).or_default();
            *all += cost;
            if sender.is_some_and(|sender| own.contains(&sender)) {
                *users += cost;
            }
        }
        Ok(Self { capacity, taken })
    }

    /// Returns the first of these parts of a device's queue that accepts a message of this cost. A part that is not
    /// full accepts a user's first message at any cost.
    pub(super) fn part_for(&self, device: i64, cost: i32, parts: &[Part]) -> Option<Part> {
        parts.iter().copied().find(|part| {
            let (all, users) = self.taken.get(&(device, part.number())).copied().unwrap_or_default();
            let (cost, holds) = (i64::from(cost), part.holds(self.capacity));
            all < holds && (users == 0 || all + cost <= holds && users + cost <= holds / SHARE)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(part: Part, all: i64, users: i64) -> Shares {
        Shares { capacity: 800, taken: HashMap::from([((7, part.number()), (all, users))]) }
    }

    #[test]
    fn a_user_has_an_eighth_of_each_part() {
        for (part, holds) in [(Part::Common, 800), (Part::Commits, 400), (Part::Welcomes, 400)] {
            let fits = |all, users, cost| taken(part, all, users).part_for(7, cost, &[part]).is_some();
            let share = holds / 8;
            assert!(fits(share - 1, share - 1, 1));
            assert!(!fits(share, share, 1), "a user has more than an eighth of {part:?}");
            assert!(fits(holds - 1, 0, 1));
            assert!(fits(holds - 1, 1, 1));
            assert!(!fits(holds, 0, 1), "{part:?} is full, and takes more");
            assert!(!fits(holds - 1, 1, 2));
        }
    }

    #[test]
    fn the_first_message_of_a_user_is_taken_however_large_it_is() {
        assert_eq!(taken(Part::Common, 799, 0).part_for(7, 129, &[Part::Common]), Some(Part::Common));
        assert_eq!(taken(Part::Common, 799, 1).part_for(7, 129, &[Part::Common]), None);
    }

    #[test]
    fn what_is_set_aside_is_there_when_the_rest_is_full() {
        let both = [Part::Common, Part::Commits];
        assert_eq!(taken(Part::Common, 0, 0).part_for(7, 1, &both), Some(Part::Common));
        assert_eq!(taken(Part::Common, 800, 0).part_for(7, 1, &both), Some(Part::Commits));
        assert_eq!(taken(Part::Common, 100, 100).part_for(7, 1, &both), Some(Part::Commits));
        assert_eq!(taken(Part::Common, 800, 0).part_for(7, 1, &[Part::Common]), None);
        assert_eq!(taken(Part::Common, 800, 0).part_for(8, 1, &[Part::Common]), Some(Part::Common));
    }

    #[test]
    fn bytes_count_like_messages() {
        assert_eq!([0, UNIT - 1, UNIT, 1024 * 1024].map(|bytes| cost(&vec![0; bytes])), [1, 1, 2, 129]);
    }
}
