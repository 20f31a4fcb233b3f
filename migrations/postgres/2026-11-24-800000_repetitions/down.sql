ALTER TABLE idempotency_keys ADD CONSTRAINT idempotency_keys_device_id_fkey FOREIGN KEY (device_id) REFERENCES devices (id);
