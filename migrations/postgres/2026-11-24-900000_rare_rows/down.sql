DROP INDEX key_packages_expired;
DROP INDEX key_packages_last_resort;
