//! The random bytes of the newest hand-outs, so that most spends without their own need no look-up.

use std::collections::HashMap;

use super::events::LoggedEvent;

/// The most hand-outs that are remembered, twice. Each takes some 100 bytes.
const REMEMBERED: usize = 20_000;

/// Random bytes by the event that began the hand-out; `None` if its adder sent none.
type Known = HashMap<i64, Option<Vec<u8>>>;

/// Remembers hand-outs in two generations: when one is full, the older one is forgotten.
#[derive(Debug, Default)]
pub(super) struct Binds {
    newer: Known,
    older: Known,
}

impl Binds {
    /// Remembers hand-outs that begin, and gives spends the bytes of theirs. Returns the events whose beginning has to be
    /// looked up.
    pub fn complete(&mut self, events: &mut [LoggedEvent]) -> Vec<i64> {
        for event in events.iter().filter(|event| event.begins()) {
            self.newer.insert(event.id, event.bind.clone());
        }
        if self.newer.len() > REMEMBERED {
            self.older = std::mem::take(&mut self.newer);
        }
        let mut unknown = Vec::new();
        for event in events.iter_mut().filter(|event| event.needs_opened()) {
            let Some(opened) = event.opened else { continue };
            match self.newer.get(&opened).or_else(|| self.older.get(&opened)) {
                Some(bind) if event.is_spend() => event.bind.clone_from(bind),
                _ => unknown.push(opened),
            }
        }
        unknown
    }
}
