//! Macros for SQL statements.

use diesel::{QueryResult, result::Error};

/// Defines functions of one or a few Diesel statements, compiled for each database's connection.
macro_rules! statements {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($conn:ident $(, $arg:ident: $ty:ty)* $(,)?) -> $ret:ty $body:block)*) => {
        $($(#[$meta])* $vis fn $name(conn: &mut $crate::store::database::Conn<'_> $(, $arg: $ty)*) -> $ret {
            match conn {
                $crate::store::database::Conn::Postgres(conn) => {
                    let $conn: &mut diesel::PgConnection = conn;
                    $body
                }
                $crate::store::database::Conn::Sqlite(conn) => {
                    let $conn: &mut diesel::SqliteConnection = conn;
                    $body
                }
            }
        })*
    };
}
pub(crate) use statements;

/// Implements Diesel's query traits for a hand-written statement: row type, and SQL per backend or for both. The
/// statement stays prepared, whereas Diesel prepares each `UPDATE` that it builds again.
macro_rules! statement {
    ($name:ident, $row:ty, both => |$this:ident, $out:ident| $walk:block) => {
        $crate::store::database::sql::statement!($name, $row,
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
pub(crate) use statement;

/// Writes SQL with named parameters: `push!(out, "... = {owner}", owner: BigInt = &owner)`. The parameters must be
/// listed in the order in which they occur.
macro_rules! push {
    ($out:ident, $sql:expr $(,)?) => {
        $out.push_sql($sql)
    };
    ($out:ident, $sql:expr $(, $name:ident: $type:ty = $value:expr)+ $(,)?) => {{
        let sql: &str = $sql;
        $(let (before, sql) = $crate::store::database::sql::split(sql, stringify!($name))?;
        $out.push_sql(before);
        $out.push_bind_param::<$type, _>($value)?;)+
        $out.push_sql(sql);
    }};
}
pub(crate) use push;

/// Splits the SQL at its next parameter, and returns the text before and after it.
///
/// # Errors
/// When that parameter has another name.
pub(crate) fn split<'a>(sql: &'a str, name: &str) -> QueryResult<(&'a str, &'a str)> {
    let at_the_name = |(before, rest): (&'a str, &'a str)| Some((before, rest.strip_prefix(name)?.strip_prefix('}')?));
    let found = sql.split_once('{').and_then(at_the_name);
    found.ok_or_else(|| Error::QueryBuilderError(format!("the next parameter of {sql:?} is not {name}").into()))
}
