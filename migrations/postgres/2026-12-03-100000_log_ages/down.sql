ALTER TABLE log_origins DROP COLUMN first_entry;
DROP TABLE log_ages;
