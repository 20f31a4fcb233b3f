DROP TABLE audit_events;
DROP TABLE hpke_keys;
DROP TABLE key_packages;
DROP TABLE devices;
DROP TABLE users;
