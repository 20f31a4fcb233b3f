-- The GroupInfo of a group's current epoch, by which a member that fell behind comes back.
CREATE TABLE group_infos (
  group_id BLOB NOT NULL PRIMARY KEY,
  epoch INTEGER NOT NULL,
  group_info BLOB NOT NULL,
  -- The user whose device sent it: a user has a share of what the server keeps.
  user_name TEXT NOT NULL,
  size INTEGER NOT NULL,
  at INTEGER NOT NULL
) STRICT;
CREATE INDEX group_infos_of_user ON group_infos (user_name, size);
CREATE INDEX group_infos_ageing ON group_infos (at);
-- The devices in these groups, by the last Commit's word.
CREATE TABLE group_members (
  group_id BLOB NOT NULL,
  device_id INTEGER NOT NULL,
  PRIMARY KEY (group_id, device_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX group_members_of_device ON group_members (device_id, group_id);
