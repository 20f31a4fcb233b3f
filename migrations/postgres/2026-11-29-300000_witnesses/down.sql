DELETE FROM key_packages WHERE device_id = 0;
ALTER TABLE lineage DROP COLUMN witness;
