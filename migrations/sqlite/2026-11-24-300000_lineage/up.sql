-- Which database this is, and how far it has come: what a restored backup is noticed by. One row.
CREATE TABLE lineage (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  -- What the database says of itself, as a server last found it; empty before the first one has looked.
  origin TEXT NOT NULL,
  -- Raised all the time, where it is kept in a file, too.
  generation INTEGER NOT NULL,
  -- When everything in the pools was last withdrawn, because the database had been restored.
  fenced_at INTEGER
) STRICT;
INSERT INTO lineage (id, origin, generation) VALUES (1, '', 0);
