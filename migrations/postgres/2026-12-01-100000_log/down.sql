-- In the order in which running servers lock them: first the sequencer is kept out, then the others.
DROP TABLE log_state;
DROP INDEX key_packages_unnamed;
ALTER TABLE key_packages DROP COLUMN opened, DROP COLUMN step, DROP COLUMN package_id;
ALTER TABLE audit_events ALTER COLUMN id SET GENERATED ALWAYS;
ALTER TABLE audit_events DROP COLUMN opened, DROP COLUMN bind, DROP COLUMN step, DROP COLUMN package_id;
DROP TABLE log_outbox;
DROP TABLE log_origins;
DROP TABLE log_secrets;
DROP TABLE log_tiles;
DROP TABLE log_positions;
