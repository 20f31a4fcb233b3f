-- How large each log was at the end of a day: the leaves before came at this time or earlier.
CREATE TABLE log_ages (
  k INTEGER NOT NULL,
  at INTEGER NOT NULL,
  size INTEGER NOT NULL,
  PRIMARY KEY (k, at)
) STRICT;
-- The first entry whose bundle is kept.
ALTER TABLE log_origins ADD COLUMN first_entry INTEGER NOT NULL DEFAULT 0;
