//! Macros for hand-written statements. They stay prepared, whereas Diesel prepares each `UPDATE` that it builds anew.

/// Implements Diesel's query traits for a hand-written statement: row type, and SQL per backend or for both.
macro_rules! statement {
    ($name:ident, $row:ty, both => |$this:ident, $out:ident| $walk:block) => {
        $crate::store::sql::statement!($name, $row,
            diesel::pg::Pg, diesel::PgConnection => |$this, $out| $walk,
            diesel::sqlite::Sqlite, diesel::SqliteConnection => |$this, $out| $walk);
    };
    ($name:ident, $row:ty $(, $backend:ty, $conn:ty => |$this:ident, $out:ident| $walk:block)+ $(,)?) => {
        impl diesel::query_builder::QueryId for $name<'_> {
            type QueryId = $name<'static>;
            const HAS_STATIC_QUERY_ID: bool = true;
        }

        impl diesel::query_builder::Query for $name<'_> {
            type SqlType = $row;
        }

        $(impl diesel::RunQueryDsl<$conn> for $name<'_> {}

        impl diesel::query_builder::QueryFragment<$backend> for $name<'_> {
            fn walk_ast<'b>(
                &'b self,
                mut $out: diesel::query_builder::AstPass<'_, 'b, $backend>,
            ) -> diesel::QueryResult<()> {
                let $this = self;
                $walk
                Ok(())
            }
        })+
    };
}
pub(super) use statement;

/// Binds arrays as the columns of an `unnest`.
macro_rules! columns {
    ($out:ident, $first:ty => $column:expr $(, $next:ty => $other:expr)* $(,)?) => {
        $out.push_bind_param::<diesel::sql_types::Array<$first>, _>(&$column)?;
        $($out.push_sql(", ");
        $out.push_bind_param::<diesel::sql_types::Array<$next>, _>(&$other)?;)*
    };
}
pub(super) use columns;
