DROP INDEX deliveries_of_device;
ALTER TABLE deliveries DROP COLUMN sender, DROP COLUMN cost, DROP COLUMN part;
CREATE INDEX deliveries_of_device ON deliveries (device_id, id);
