-- What shows that a table was loaded from a dump. A row of `lineage` and one of `key_packages`, the witnesses, have the same
-- generation: in `lineage`, it is `generation`; in `key_packages`, it is `ended_at`.
--
-- The witness of `key_packages` is of device 0, which nobody is: its user has a name that no user can have. It ended in a way
-- that no sweep looks for, and its `not_after` is in the year 9999.
INSERT INTO users (name, created_at) VALUES ('', 0);
INSERT INTO devices (id, user_name, device_name, token_hash, created_at, removed_at) VALUES (0, '', '', x'', 0, 0);
INSERT INTO key_packages (keypackage_ref, device_id, ciphersuite, key_package, not_after, last_resort, state, ended_at)
  SELECT CAST('witness' AS BLOB), 0, 0, x'', 253370764800, 0, 'retired', generation FROM lineage;
-- A server of the version before raises the generation in `lineage` alone. Where the two differ already, they stay different.
-- A migration that makes `key_packages` anew has to make this anew as well.
CREATE TRIGGER lineage_generation AFTER UPDATE OF generation ON lineage BEGIN
  UPDATE key_packages SET ended_at = new.generation
    WHERE keypackage_ref = CAST('witness' AS BLOB) AND ended_at = old.generation;
END;
