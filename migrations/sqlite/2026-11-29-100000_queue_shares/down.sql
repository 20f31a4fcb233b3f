DROP INDEX deliveries_of_device;
ALTER TABLE deliveries DROP COLUMN sender;
ALTER TABLE deliveries DROP COLUMN cost;
ALTER TABLE deliveries DROP COLUMN part;
CREATE INDEX deliveries_of_device ON deliveries (device_id, id);
