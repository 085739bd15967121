//! Many rows into one table: values are bound by reference, by statements whose text never changes.
//!
//! Postgres takes the columns as arrays, all rows at once. SQLite takes a number of rows in a statement; a row that has NULL in
//! most columns goes by a narrower one.

use super::StoreError;
use super::engine::{Sql, Tx, TxBackend, with_timeout};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgArguments, PgTypeInfo, Postgres};
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, AssertSqlSafe, Encode, SqlSafeStr, SqlStr, Type};
use std::sync::Arc;

/// A value of a row.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cell<'a> {
    Null,
    Text(&'a str),
    Int(i64),
    Bytes(&'a [u8]),
}

impl<'a> Cell<'a> {
    pub fn text(text: Option<&'a str>) -> Self {
        text.map_or(Cell::Null, Cell::Text)
    }

    pub fn int(number: Option<i64>) -> Self {
        number.map_or(Cell::Null, Cell::Int)
    }

    pub fn bytes(bytes: Option<&'a [u8]>) -> Self {
        bytes.map_or(Cell::Null, Cell::Bytes)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum CellType {
    Text,
    Int,
    Bytes,
}

/// A column of the table.
pub(super) struct BulkColumn {
    pub name: &'static str,
    pub holds: CellType,
    /// What Postgres makes of the value `r.name`; empty: nothing.
    pub postgres: &'static str,
}

/// A row of a table, with a value for each column.
pub(super) trait BulkRow<const WIDTH: usize> {
    const TABLE: &'static str;
    /// The columns that make a row known: of two rows that agree in them the second one is left out.
    const KEY: &'static str;
    const COLUMNS: [BulkColumn; WIDTH];
    fn cells(&self) -> [Cell<'_>; WIDTH];
}

/// How many rows go into one statement on SQLite. A statement is a trip to the connection's thread and back, dearer than the
/// row; few sizes, so that few statements are kept prepared.
const AT_ONCE: [usize; 4] = [64, 16, 4, 1];

/// The statements of a table.
pub(super) struct Bulk {
    postgres: String,
    /// From the narrowest to the one with all columns.
    column_sets: Vec<ColumnSet>,
}

/// Some of the columns, for rows that have NULL in all others.
struct ColumnSet {
    columns: Vec<usize>,
    mask: u64,
    /// One for each number of `AT_ONCE`.
    statements: [SqlStr; AT_ONCE.len()],
}

impl Bulk {
    /// `narrow`: names of the columns that many rows have, and no others.
    pub fn new<const WIDTH: usize, R: BulkRow<WIDTH>>(narrow: &[&[&str]]) -> Self {
        let all: Vec<usize> = (0..WIDTH).collect();
        let columns = |names: &&[&str]| -> Vec<usize> {
            let of = |index: &usize| names.contains(&R::COLUMNS[*index].name);
            all.iter().copied().filter(of).collect()
        };
        let column_sets = narrow.iter().map(columns).chain([all.clone()]);
        Self {
            postgres: postgres_text::<WIDTH, R>(),
            column_sets: column_sets.map(ColumnSet::new::<WIDTH, R>).collect(),
        }
    }
}

impl ColumnSet {
    fn new<const WIDTH: usize, R: BulkRow<WIDTH>>(columns: Vec<usize>) -> Self {
        let names: Vec<&str> = columns.iter().map(|index| R::COLUMNS[*index].name).collect();
        let row = format!("({})", vec!["?"; columns.len()].join(","));
        let statement = |rows: usize| {
            let (table, names, key) = (R::TABLE, names.join(","), R::KEY);
            let rows = vec![row.as_str(); rows].join(",");
            let text = format!("INSERT INTO {table} ({names}) VALUES {rows} ON CONFLICT ({key}) DO NOTHING");
            AssertSqlSafe(text).into_sql_str()
        };
        Self {
            mask: columns.iter().fold(0, |mask, index| mask | 1 << index),
            statements: AT_ONCE.map(statement),
            columns,
        }
    }
}

fn postgres_text<const WIDTH: usize, R: BulkRow<WIDTH>>() -> String {
    let names = R::COLUMNS.map(|column| column.name).join(",");
    let values = R::COLUMNS.map(|column| match column.postgres {
        "" => format!("r.{}", column.name),
        made => made.to_owned(),
    });
    let mut number = 0;
    let arrays = R::COLUMNS.map(|column| {
        number += 1;
        match column.holds {
            CellType::Text => format!("${number}::text[]"),
            CellType::Int => format!("${number}::bigint[]"),
            CellType::Bytes => format!("${number}::bytea[]"),
        }
    });
    let (table, values, arrays) = (R::TABLE, values.join(","), arrays.join(","));
    format!("INSERT INTO {table} ({names}) SELECT {values} FROM unnest({arrays}) AS r ({names}) ON CONFLICT DO NOTHING")
}

impl Tx {
    /// Inserts the rows that are not there and returns how many these were. After an error the transaction is of no use.
    pub(super) async fn insert_bulk<const WIDTH: usize, R: BulkRow<WIDTH>>(
        &mut self,
        bulk: &'static Bulk,
        rows: &[R],
    ) -> Result<u64, StoreError> {
        match &mut self.on {
            TxBackend::Postgres(tx) => {
                let query = sqlx::query_with(bulk.postgres.as_str(), postgres_arrays(rows));
                let done = with_timeout(&self.location, query.execute(&mut **tx)).await?;
                Ok(done.rows_affected())
            }
            TxBackend::Sqlite(tx) => {
                let mut inserted = 0;
                let mut rows = SqliteRows::of(bulk, rows);
                while let Some((statement, arguments)) = rows.next() {
                    let query = sqlx::query_with(statement, arguments);
                    let done = with_timeout(&self.location, query.execute(&mut *tx.connection)).await?;
                    inserted += done.rows_affected();
                }
                Ok(inserted)
            }
        }
    }

    /// The same, all or nothing: after an error the transaction is as before.
    pub(super) async fn try_insert_bulk<const WIDTH: usize, R: BulkRow<WIDTH>>(
        &mut self,
        bulk: &'static Bulk,
        rows: &[R],
    ) -> Result<u64, StoreError> {
        const SAVE: Sql = Sql::same("SAVEPOINT bulk");
        const RELEASE: Sql = Sql::same("RELEASE SAVEPOINT bulk");
        const UNDO: Sql = Sql::same("ROLLBACK TO SAVEPOINT bulk");
        self.execute(&SAVE, &[]).await?;
        let inserted = self.insert_bulk(bulk, rows).await;
        if inserted.is_err() {
            self.execute(&UNDO, &[]).await?;
        }
        self.execute(&RELEASE, &[]).await?;
        inserted
    }
}

// ---- SQLite

/// The rows of each set of columns, in their order, and the texts that came last in each column: one that comes again is shared.
struct SqliteRows<'a, const WIDTH: usize, R> {
    bulk: &'static Bulk,
    left: Vec<Vec<&'a R>>,
    texts: [Option<Arc<str>>; WIDTH],
}

impl<'a, const WIDTH: usize, R: BulkRow<WIDTH>> SqliteRows<'a, WIDTH, R> {
    fn of(bulk: &'static Bulk, rows: &'a [R]) -> Self {
        let mut left: Vec<Vec<&R>> = bulk.column_sets.iter().map(|_| Vec::new()).collect();
        for row in rows {
            let set = |mask, (index, cell): (usize, &Cell)| match cell {
                Cell::Null => mask,
                _ => mask | 1 << index,
            };
            let mask: u64 = row.cells().iter().enumerate().fold(0, set);
            let column_set = bulk.column_sets.iter().position(|set| mask & !set.mask == 0);
            left[column_set.expect("the last set has every column")].push(row);
        }
        Self {
            bulk,
            left,
            texts: [const { None }; WIDTH],
        }
    }

    /// Statement by statement, so that only one has its values bound at a time. The sets take turns: rows go in nearly in
    /// the order in which they came, which fills the pages of an index.
    fn next(&mut self) -> Option<(SqlStr, SqliteArguments)> {
        let longest = (0..self.left.len()).max_by_key(|set| self.left[*set].len())?;
        let size = AT_ONCE.iter().position(|size| *size <= self.left[longest].len())?;
        let later = self.left[longest].split_off(AT_ONCE[size]);
        let rows = std::mem::replace(&mut self.left[longest], later);
        let column_set = &self.bulk.column_sets[longest];
        let mut arguments = SqliteArguments::default();
        arguments.reserve(rows.len() * column_set.columns.len(), 0);
        for row in rows {
            let cells = row.cells();
            for column in &column_set.columns {
                self.bind(&mut arguments, *column, cells[*column]);
            }
        }
        Some((column_set.statements[size].clone(), arguments))
    }

    fn bind(&mut self, arguments: &mut SqliteArguments, column: usize, cell: Cell) {
        let added = match cell {
            Cell::Null => arguments.add(None::<i64>),
            Cell::Int(number) => arguments.add(number),
            Cell::Bytes(bytes) => arguments.add(bytes.to_vec()),
            Cell::Text(text) => {
                let last = self.texts[column].take().filter(|last| **last == *text);
                let shared = last.unwrap_or_else(|| Arc::from(text));
                self.texts[column] = Some(shared.clone());
                arguments.add(shared)
            }
        };
        added.expect("SQLite takes every text, number and blob");
    }
}

// ---- Postgres

/// A column of all rows as Postgres' binary form of an array has its elements: each with its length before it.
struct PostgresArray {
    holds: CellType,
    elements: Vec<u8>,
    count: i32,
}

/// The rows turned on their side: one array an argument, for `unnest`.
fn postgres_arrays<const WIDTH: usize, R: BulkRow<WIDTH>>(rows: &[R]) -> PgArguments {
    let mut arrays = R::COLUMNS.map(|column| PostgresArray {
        holds: column.holds,
        elements: Vec::with_capacity(rows.len() * 16),
        count: 0,
    });
    for row in rows {
        for (array, cell) in arrays.iter_mut().zip(row.cells()) {
            array.push(cell);
        }
    }
    let mut arguments = PgArguments::default();
    let size = arrays.iter().map(|array| array.elements.len() + 64).sum();
    arguments.reserve(WIDTH, size);
    for array in arrays {
        arguments.add(array).expect("a batch is far below 2 GiB");
    }
    arguments
}

impl PostgresArray {
    fn push(&mut self, cell: Cell) {
        self.count += 1;
        let number;
        let value = match cell {
            Cell::Null => {
                self.elements.extend_from_slice(&(-1_i32).to_be_bytes());
                return;
            }
            Cell::Text(text) => text.as_bytes(),
            Cell::Bytes(bytes) => bytes,
            Cell::Int(value) => {
                number = value.to_be_bytes();
                &number
            }
        };
        self.elements.extend_from_slice(&(value.len() as i32).to_be_bytes());
        self.elements.extend_from_slice(value);
    }
}

impl Type<Postgres> for PostgresArray {
    /// Of one that holds texts; `produces` tells of the others.
    fn type_info() -> PgTypeInfo {
        <[&str] as Type<Postgres>>::type_info()
    }
}

impl Encode<'_, Postgres> for PostgresArray {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        let element = match self.holds {
            CellType::Text => <&str as Type<Postgres>>::type_info(),
            CellType::Int => <i64 as Type<Postgres>>::type_info(),
            CellType::Bytes => <&[u8] as Type<Postgres>>::type_info(),
        };
        let element = element.oid().ok_or("a type that Postgres brings has a number")?;
        buffer.extend_from_slice(&1_i32.to_be_bytes()); // dimensions
        buffer.extend_from_slice(&1_i32.to_be_bytes()); // there may be NULLs
        buffer.extend_from_slice(&element.0.to_be_bytes());
        buffer.extend_from_slice(&self.count.to_be_bytes());
        buffer.extend_from_slice(&1_i32.to_be_bytes()); // index of the first element
        buffer.extend_from_slice(&self.elements);
        Ok(IsNull::No)
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(match self.holds {
            CellType::Text => <[&str] as Type<Postgres>>::type_info(),
            CellType::Int => <[i64] as Type<Postgres>>::type_info(),
            CellType::Bytes => <[&[u8]] as Type<Postgres>>::type_info(),
        })
    }
}
