-- Rows of devices are never deleted, so these could never fail; and each cost a query and a lock for every row of every
-- reservation and spend.
ALTER TABLE key_packages DROP CONSTRAINT key_packages_reserved_by_fkey;
ALTER TABLE audit_events DROP CONSTRAINT audit_events_device_id_fkey;
ALTER TABLE audit_events DROP CONSTRAINT audit_events_actor_fkey;
-- Every reservation and every spend leaves a dead row and dead index entries: they are cleared away sooner than by default,
-- and without pauses.
ALTER TABLE key_packages SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0,
  autovacuum_analyze_scale_factor = 0.05);
