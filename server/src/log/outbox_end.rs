//! Where the next look into the outbox begins.

use std::time::{Duration, Instant};

/// How long rows of the outbox before the last one may still come: their transactions began before and are not committed.
const STRAGGLERS: Duration = Duration::from_mins(1);

/// How often the outbox is read from its beginning.
const FROM_THE_BEGINNING: Duration = Duration::from_mins(1);

/// Where the next look into the outbox begins. Dead rows pile up at its head while an old snapshot is open, so most looks
/// begin where the outbox ended a minute ago.
#[derive(Debug, Default)]
pub(super) struct OutboxEnd {
    /// The end of the outbox, and when it was there.
    ends: Vec<(Instant, i64)>,
    /// When it was last read from its beginning.
    whole: Option<Instant>,
}

impl OutboxEnd {
    /// The row after which to begin.
    pub(super) fn begin(&mut self, now: Instant) -> i64 {
        if self.whole.is_none_or(|whole| now.duration_since(whole) >= FROM_THE_BEGINNING) {
            self.whole = Some(now);
            return 0;
        }
        // The newest of those that are old enough, and none before it is needed any more.
        let old = self.ends.partition_point(|(at, _)| now.duration_since(*at) >= STRAGGLERS);
        self.ends.drain(..old.saturating_sub(1));
        self.ends.first().filter(|_| old > 0).map_or(0, |(_, last)| *last)
    }

    pub(super) fn ended(&mut self, now: Instant, last: i64) {
        self.ends.push((now, last));
    }

    /// SQLite commits events in the order of their ids, so each look begins where the last one ended.
    pub(super) fn follow(&mut self) -> i64 {
        self.ends.drain(..self.ends.len().saturating_sub(1));
        self.ends.first().map_or(0, |(_, last)| *last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_looks_begin_where_the_outbox_ended_a_minute_ago() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut next = OutboxEnd::default();
        assert_eq!(next.begin(at(0)), 0, "from the beginning");
        next.ended(at(0), 10);
        next.ended(at(30), 20);
        assert_eq!(next.begin(at(59)), 0, "earlier rows may still come");
        assert_eq!(next.begin(at(60)), 0, "once a minute from the beginning");
        assert_eq!(next.begin(at(61)), 10);
        assert_eq!(next.begin(at(91)), 20);
        assert_eq!(next.ends.len(), 1);
        assert_eq!(next.begin(at(121)), 0);
    }
}
