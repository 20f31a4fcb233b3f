DROP TRIGGER lineage_generation;
DELETE FROM key_packages WHERE device_id = 0;
DELETE FROM devices WHERE id = 0;
DELETE FROM users WHERE name = '';
