//! Fixed SQL texts that stay prepared.
//!
//! Diesel prepares the queries of its DSL once per connection, but not those of [`diesel::sql_query`], which
//! are parsed and planned anew each time. The statements of the claim protocol are clearer as SQL and run on
//! every request, so they use this small query node.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use diesel::expression::{AsExpression, Expression};
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::SingleValue;
use diesel::{IntoSql, PgConnection, QueryResult, RunQueryDsl};

/// A statement with `{}` for each value or fragment, and rows of the SQL type `ST`.
pub struct Statement<'a, ST> {
    sql: &'static str,
    binds: Vec<Box<dyn QueryFragment<Pg> + 'a>>,
    rows: PhantomData<ST>,
}

/// Starts a statement. Pass its values to [`Statement::bind`], in the order of the `{}`.
pub fn statement<'a, ST>(sql: &'static str) -> Statement<'a, ST> {
    Statement { sql, binds: Vec::new(), rows: PhantomData }
}

/// Rows by what they begin with, such as a merchant, in its order.
pub fn grouped<K: Ord, T>(rows: impl IntoIterator<Item = (K, T)>) -> BTreeMap<K, Vec<T>> {
    let mut grouped = BTreeMap::<_, Vec<_>>::new();
    for (key, row) in rows {
        grouped.entry(key).or_default().push(row);
    }
    grouped
}

impl<'a, ST> Statement<'a, ST> {
    /// Binds the next value, of SQL type `T`.
    pub fn bind<T, V>(mut self, value: V) -> Self
    where
        T: diesel::sql_types::SqlType + diesel::expression::TypedExpressionType + SingleValue,
        V: AsExpression<T>,
        V::Expression: Expression + QueryFragment<Pg> + 'a,
    {
        self.binds.push(Box::new(value.into_sql::<T>()));
        self
    }
}

impl<'a, ST> Statement<'a, ST> {
    /// Replaces the next `{}` with an SQL fragment of Diesel's.
    pub fn fragment(mut self, fragment: impl QueryFragment<Pg> + 'a) -> Self {
        self.binds.push(Box::new(fragment));
        self
    }
}

impl<ST> QueryFragment<Pg> for Statement<'_, ST> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        let mut binds = self.binds.iter();
        for (number, piece) in self.sql.split("{}").enumerate() {
            if number > 0 {
                binds.next().expect("a value for each {}").walk_ast(out.reborrow())?;
            }
            out.push_sql(piece);
        }
        Ok(())
    }
}

/// Without an id of its own, the statement is cached under its text, which identifies it.
impl<ST> QueryId for Statement<'_, ST> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<ST> Query for Statement<'_, ST> {
    type SqlType = ST;
}

impl<ST> RunQueryDsl<PgConnection> for Statement<'_, ST> {}

/// Whether a condition holds, as an SQL expression without values.
pub fn holds(conn: &mut PgConnection, condition: &str) -> QueryResult<bool> {
    diesel::select(diesel::dsl::sql::<diesel::sql_types::Bool>(condition)).get_result(conn)
}
