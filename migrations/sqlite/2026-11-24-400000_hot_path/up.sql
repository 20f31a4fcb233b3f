-- SQLite has one writer and no dead rows: there is nothing to take off its path.
SELECT 1;
