-- Rows of devices are never deleted, so this could never fail; and it cost a query and a lock for every reservation that may
-- be repeated.
ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_device_id_fkey;
