ALTER TABLE users DROP COLUMN devices_version;
DELETE FROM audit_events WHERE signature_key IS NOT NULL;
ALTER TABLE audit_events DROP COLUMN signature_key;
DROP TABLE signature_keys;
