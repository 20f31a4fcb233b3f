DROP TABLE enrolments;
DROP TABLE idempotency_keys;

ALTER TABLE key_packages ADD COLUMN uploaded_at BIGINT NOT NULL DEFAULT 0;
UPDATE key_packages SET uploaded_at = audit_events.at FROM audit_events
WHERE audit_events.keypackage_ref = key_packages.keypackage_ref AND audit_events.action = 'upload';
ALTER TABLE key_packages ALTER COLUMN uploaded_at DROP DEFAULT;

ALTER TABLE audit_events DROP COLUMN until;
DELETE FROM audit_events WHERE actor IS NULL OR action IN ('lapse', 'expire');
ALTER TABLE audit_events ALTER COLUMN actor SET NOT NULL;
ALTER TABLE audit_events DROP CONSTRAINT audit_events_action_check;
ALTER TABLE audit_events ADD CONSTRAINT audit_events_action_check
  CHECK (action IN ('upload', 'reserve', 'spend', 'release', 'revoke'));

DROP INDEX hpke_keys_ageing;
DROP INDEX key_packages_ageing;
DROP INDEX key_packages_held;
DROP INDEX key_packages_of_device;
CREATE INDEX key_packages_of_device ON key_packages (device_id, state);
ALTER TABLE key_packages DROP COLUMN live, DROP COLUMN held;
UPDATE key_packages SET state = 'revoked' WHERE state = 'retired';
ALTER TABLE key_packages DROP CONSTRAINT key_packages_state_check;
ALTER TABLE key_packages ADD CONSTRAINT key_packages_state_check
  CHECK (state IN ('available', 'reserved', 'spent', 'revoked', 'expired'));

-- A removed device is there again; its token stays dead, since no token has this hash.
UPDATE devices SET token_hash = sha256(convert_to('removed ' || id, 'UTF8')) WHERE removed_at IS NOT NULL;
ALTER TABLE devices DROP COLUMN registration_key;
ALTER TABLE devices DROP COLUMN removed_at;
