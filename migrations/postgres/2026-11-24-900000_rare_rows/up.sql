-- What is asked for only where a pool has nothing else: it is found without going through all that the device ever had there,
-- most of which is spent. A reservation leaves neither index an entry.
CREATE INDEX key_packages_last_resort ON key_packages (device_id) WHERE last_resort;
CREATE INDEX key_packages_expired ON key_packages (device_id) WHERE state = 'expired';
