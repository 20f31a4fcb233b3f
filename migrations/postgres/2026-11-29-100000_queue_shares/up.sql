-- What a message takes of its recipient's queue, of whose share, and of which part of the queue. Rows from before count as one
-- small message of nobody in particular.
ALTER TABLE deliveries
  ADD COLUMN sender BIGINT,
  -- In units of 8 KiB, and one more.
  ADD COLUMN cost INTEGER NOT NULL DEFAULT 1,
  -- 0 for all senders alike, 1 set aside for Commits of members, 2 set aside for Welcomes.
  ADD COLUMN part SMALLINT NOT NULL DEFAULT 0;
DROP INDEX deliveries_of_device;
CREATE INDEX deliveries_of_device ON deliveries (device_id, id) INCLUDE (part, sender, cost);
