-- An upload holds the row of its device, and rows of devices are never deleted: these could never fail either, and cost
-- three queries for every KeyPackage that comes.
ALTER TABLE key_packages DROP CONSTRAINT key_packages_device_id_fkey;
ALTER TABLE hpke_keys DROP CONSTRAINT hpke_keys_device_id_fkey;
