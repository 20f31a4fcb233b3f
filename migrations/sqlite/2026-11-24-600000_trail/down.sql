DROP INDEX audit_events_of_reservation;
CREATE INDEX audit_events_of_reservation ON audit_events (device_id, reservation) WHERE reservation IS NOT NULL;
