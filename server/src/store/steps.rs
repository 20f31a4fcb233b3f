//! The number of a KeyPackage's last step, from which the log knows what its leaves are (docs/transparency.md).
//!
//! The number is 4n and
//! - 0: the owner revoked it at rest, where it would have been handed out as n: end(n) alone,
//! - 1: it is handed out as n: open(n),
//! - 2: hand-out n is over: end(n),
//! - 3: hand-out n is over, and its beginning had no leaf: open(n) and end(n). So it is with a late spend, and with what a server of
//!   the version before handed out.
//!
//! -1 means that it was never handed out. Last resorts have no number in their row; their events have 1 and 2.

use diesel::{
    dsl::sql,
    expression::SqlLiteral,
    sql_types::{Binary, Integer, Nullable},
};

/// The number of a KeyPackage that is handed out for the first time.
pub(super) const FIRST: i32 = 1;

/// The number of the event that ends a last resort's hand-out.
pub(super) const USED: i32 = 2;

/// The most hand-outs of a KeyPackage: an adder checks the end of each earlier one.
const MOST: i32 = 16;

/// What an event's leaves are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaves {
    /// Hand-out n begins.
    Open(u32),
    /// Hand-out n is over.
    End(u32),
    /// Hand-out n begins and is over.
    Both(u32),
}

/// The number when it is handed out again.
pub(super) fn opened(step: i32) -> i32 {
    (step | 3) + 2
}

/// The number when its hand-out is spent, released or lapsed.
pub(super) fn ended(step: i32) -> i32 {
    if step & 3 == 1 { step + 1 } else { (step | 3) + 4 }
}

/// Whether this is the last hand-out.
pub(super) fn is_last(step: i32) -> bool {
    step >> 2 >= MOST - 1
}

/// Whether its owner or the operator revoked it while nobody held it.
pub(super) fn is_revoked_at_rest(step: i32) -> bool {
    step.rem_euclid(4) == 0
}

/// What the leaves of an event with this number are.
pub(super) fn leaves(step: i32) -> Leaves {
    let n = u32::try_from(step >> 2).unwrap_or_default();
    match step & 3 {
        1 => Leaves::Open(n),
        3 => Leaves::Both(n),
        _ => Leaves::End(n),
    }
}

/// The number of the hand-out, which the adder is told; `None` for a last resort.
pub(super) fn handout(step: i32, last_resort: bool) -> Option<u32> {
    u32::try_from(step >> 2).ok().filter(|_| !last_resort)
}

/// How many leaves an event with this number has.
pub(super) fn count(step: i32, last_resort: bool) -> u8 {
    if !last_resort && matches!(leaves(step), Leaves::Both(_)) { 2 } else { 1 }
}

/// SQL: [`ended`] of the row's number.
pub(super) const ENDED: &str = "CASE WHEN step & 3 = 1 THEN step + 1 ELSE (step | 3) + 4 END";

/// SQL: [`ENDED`] as an expression.
pub(super) fn ended_in_row() -> SqlLiteral<Integer> {
    sql(ENDED)
}

/// SQL: the row's number after its owner or the operator has revoked it. A last resort's stays.
pub(super) const REVOKED: &str =
    "CASE WHEN last_resort THEN step WHEN step & 3 = 1 THEN step + 1 ELSE (step | 3) + 1 END";

/// SQL: [`REVOKED`] as an expression.
pub(super) fn revoked_in_row() -> SqlLiteral<Integer> {
    sql(REVOKED)
}

/// SQL, for a row that was just revoked: its reservation, if it was handed out.
pub(super) fn ended_reservation() -> SqlLiteral<Nullable<Binary>> {
    sql("CASE WHEN step & 3 = 2 AND NOT last_resort THEN reservation END")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hand_outs_are_counted_and_each_step_has_its_leaves_once() {
        let first = opened(-1);
        assert_eq!((first, leaves(first)), (FIRST, Leaves::Open(0)));
        let lapsed = ended(first);
        assert_eq!(leaves(lapsed), Leaves::End(0));
        assert_eq!(leaves(opened(lapsed)), Leaves::Open(1));
        assert_eq!(leaves(ended(opened(lapsed))), Leaves::End(1));
        let late = ended(lapsed);
        assert_eq!(leaves(late), Leaves::Both(1));
        assert_eq!(leaves(ended(-1)), Leaves::Both(0), "a server of the version before handed it out");
        assert_eq!(leaves(opened(late)), Leaves::Open(2));
    }

    #[test]
    fn the_sixteenth_hand_out_is_the_last() {
        let mut step = -1;
        for n in 0..16 {
            step = opened(step);
            assert_eq!((leaves(step), is_last(step)), (Leaves::Open(n), n == 15));
            step = ended(step);
        }
    }
}
