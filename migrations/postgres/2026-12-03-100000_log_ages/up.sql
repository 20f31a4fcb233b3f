-- How large each log was at the end of a day: the leaves before came at this time or earlier.
CREATE TABLE log_ages (
  k INTEGER NOT NULL,
  at BIGINT NOT NULL,
  size BIGINT NOT NULL,
  PRIMARY KEY (k, at)
);
-- The first entry whose bundle is kept.
ALTER TABLE log_origins ADD COLUMN first_entry BIGINT NOT NULL DEFAULT 0;
