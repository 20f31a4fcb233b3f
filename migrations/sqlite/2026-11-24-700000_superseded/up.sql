-- A group's newest Commit is kept, however old. So that a sweep need not go through those of all groups that are idle to find
-- what may be forgotten, a Commit is marked when the next one comes, and only what is marked is in the index.
ALTER TABLE commits ADD COLUMN superseded INTEGER NOT NULL DEFAULT FALSE;
UPDATE commits SET superseded = true
  WHERE EXISTS (SELECT 1 FROM commits newer WHERE newer.group_id = commits.group_id AND newer.epoch > commits.epoch);
DROP INDEX commits_ageing;
CREATE INDEX commits_ageing ON commits (at) WHERE superseded;
