ALTER TABLE hpke_keys ADD CONSTRAINT hpke_keys_device_id_fkey FOREIGN KEY (device_id) REFERENCES devices (id);
ALTER TABLE key_packages ADD CONSTRAINT key_packages_device_id_fkey FOREIGN KEY (device_id) REFERENCES devices (id);
