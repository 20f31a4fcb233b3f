-- The trail is asked for a reservation only where no KeyPackage carries it: for the last resort, and for one that has ended
-- and was made anew, whose end is noted. So what begins a reservation, the most frequent event of all, needs no entry.
DROP INDEX audit_events_of_reservation;
CREATE INDEX audit_events_of_reservation ON audit_events (device_id, reservation)
  WHERE reservation IS NOT NULL AND (last_resort OR action <> 'reserve');
