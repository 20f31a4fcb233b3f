-- What shows that a table was loaded from a dump. A row of `lineage` and one of `key_packages`, the witnesses, each have the
-- number of the transaction that wrote them. PostgreSQL keeps that number in `xmin`: through VACUUM FREEZE, VACUUM FULL and
-- CLUSTER, and not through a dump. Each sweep writes them anew.
--
-- A migration that rewrites one of the two tables gives its rows another `xmin`. It has to write the witness first, in the
-- same transaction: docs/development.md has the statement.
ALTER TABLE lineage ADD COLUMN witness BIGINT;
UPDATE lineage SET witness = pg_current_xact_id()::xid::text::bigint;
-- The witness of `key_packages` is of device 0, which nobody is. It ended in a way that no sweep looks for, and its
-- `not_after` is in the year 9999. The number is in `ended_at`.
INSERT INTO key_packages (keypackage_ref, device_id, ciphersuite, key_package, not_after, last_resort, state, ended_at)
  VALUES ('witness', 0, 0, '', 253370764800, false, 'retired', pg_current_xact_id()::xid::text::bigint);
