//! What tests look up and break in a store.

use super::store::LocalStore;

impl LocalStore {
    /// How many rows a table has.
    pub(crate) fn count(&self, table: &str) -> i64 {
        self.connection().query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    }

    /// Makes every metadata row past the first `limit` fail.
    pub(crate) fn refuse_rows_after(&self, limit: u32) {
        let trigger = format!(
            "CREATE TRIGGER full BEFORE INSERT ON keypackage_pool_metadata
             WHEN (SELECT count(*) FROM keypackage_pool_metadata) >= {limit}
             BEGIN SELECT RAISE(ABORT, 'full'); END"
        );
        self.connection().execute_batch(&trigger).unwrap();
    }

    /// How many bytes the metadata table has in the file, without its indexes.
    pub(crate) fn metadata_size(&self) -> usize {
        let sql = "SELECT sum(pgsize - unused) FROM dbstat WHERE name = 'keypackage_pool_metadata'";
        self.connection().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// How SQLite would run a query.
    pub(crate) fn plan(&self, query: &str) -> String {
        self.connection().query_row(&format!("EXPLAIN QUERY PLAN {query}"), [], |row| row.get("detail")).unwrap()
    }

    /// All that the metadata table holds, as bytes.
    pub(crate) fn metadata_bytes(&self) -> Vec<u8> {
        use rusqlite::types::ValueRef;

        let connection = self.connection();
        let mut select = connection.prepare("SELECT * FROM keypackage_pool_metadata").unwrap();
        let columns = select.column_count();
        let mut rows = select.query([]).unwrap();
        let mut bytes = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            for column in 0..columns {
                match row.get_ref(column).unwrap() {
                    ValueRef::Null => {}
                    ValueRef::Integer(number) => bytes.extend(number.to_be_bytes()),
                    ValueRef::Real(number) => bytes.extend(number.to_be_bytes()),
                    ValueRef::Text(value) | ValueRef::Blob(value) => bytes.extend(value),
                }
            }
        }
        bytes
    }
}
