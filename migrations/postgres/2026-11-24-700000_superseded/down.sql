DROP INDEX commits_ageing;
ALTER TABLE commits DROP COLUMN superseded;
CREATE INDEX commits_ageing ON commits (at);
