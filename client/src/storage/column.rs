//! The values in SQLite's columns, to and from our types.

use jiff::Timestamp;
use keypool_openapi::{KeyPackageRef, RefusalReason, ReservationId};
use rusqlite::{
    ToSql,
    types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, Value, ValueRef},
};

use crate::key_package_status::KeyPackageStatus;

/// A type that a column can hold.
pub(super) trait Column: Sized {
    fn to_column(&self) -> rusqlite::Result<ToSqlOutput<'_>>;
    fn from_column(value: ValueRef<'_>) -> FromSqlResult<Self>;
}

/// A value to write into a column, or read from one.
pub(super) struct Sql<T>(pub(super) T);

impl<T: Column> ToSql for Sql<&T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.0.to_column()
    }
}

impl<T: Column> FromSql for Sql<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        T::from_column(value).map(Self)
    }
}

/// For types that rusqlite converts itself.
macro_rules! plain_columns {
    ($($type:ty),+) => {
        $(impl Column for $type {
            fn to_column(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                self.to_sql()
            }

            fn from_column(value: ValueRef<'_>) -> FromSqlResult<Self> {
                Self::column_result(value)
            }
        })+
    };
}

plain_columns!(bool, u16, String, Vec<u8>);

impl<T: Column> Column for Option<T> {
    fn to_column(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.as_ref().map_or(Ok(ToSqlOutput::Owned(Value::Null)), T::to_column)
    }

    fn from_column(value: ValueRef<'_>) -> FromSqlResult<Self> {
        if value == ValueRef::Null { Ok(None) } else { T::from_column(value).map(Some) }
    }
}

/// In seconds.
impl Column for Timestamp {
    fn to_column(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_second().into())
    }

    fn from_column(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let second = value.as_i64()?;
        Self::from_second(second).map_err(|_| invalid("time", second))
    }
}

impl Column for KeyPackageRef {
    fn to_column(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.as_bytes().to_sql()
    }

    fn from_column(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Ok(value.as_blob()?.to_vec().into())
    }
}

impl Column for ReservationId {
    fn to_column(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.to_string().into())
    }

    fn from_column(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let text = value.as_str()?;
        text.parse().map_err(|_| invalid("reservation", text))
    }
}

impl Column for KeyPackageStatus {
    fn to_column(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(<&str>::from(*self).into())
    }

    fn from_column(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let text = value.as_str()?;
        text.parse().map_err(|_| invalid("status", text))
    }
}

impl Column for RefusalReason {
    fn to_column(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(<&str>::from(*self).into())
    }

    fn from_column(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let text = value.as_str()?;
        text.parse().map_err(|_| invalid("reason", text))
    }
}

fn invalid(kind: &str, value: impl std::fmt::Debug) -> FromSqlError {
    FromSqlError::Other(format!("a row has the {kind} {value:?}").into())
}
