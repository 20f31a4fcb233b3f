DROP TABLE group_members;
DROP TABLE group_infos;
