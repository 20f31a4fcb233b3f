-- SQLite checks a foreign key within its process, which costs nearly nothing.
SELECT 1;
