//! A table of cities and the one statement that reads it. It looks like SQL so that policies have something to guard;
//! there is no database behind it and nothing it could change.

use std::cmp::Ordering;

pub(super) const COLUMNS: [&str; 5] = ["name", "country", "continent", "population", "latitude"];

type City = (&'static str, &'static str, &'static str, i64, f64);

/// Round figures.
const CITIES: [City; 12] = [
    ("Berlin", "Germany", "Europe", 3_700_000, 52.5),
    ("Cairo", "Egypt", "Africa", 10_000_000, 30.0),
    ("Lima", "Peru", "South America", 10_000_000, -12.0),
    ("Lisbon", "Portugal", "Europe", 550_000, 38.7),
    ("London", "United Kingdom", "Europe", 8_900_000, 51.5),
    ("Nairobi", "Kenya", "Africa", 4_400_000, -1.3),
    ("Quito", "Ecuador", "South America", 1_800_000, -0.2),
    ("Reykjavik", "Iceland", "Europe", 140_000, 64.1),
    ("Sydney", "Australia", "Oceania", 5_300_000, -33.9),
    ("Tokyo", "Japan", "Asia", 14_000_000, 35.7),
    ("Toronto", "Canada", "North America", 2_800_000, 43.7),
    ("Wellington", "New Zealand", "Oceania", 210_000, -41.3),
];

/// Runs a statement: a header line and a line per row, columns apart by ` | `.
pub(super) fn run(sql: &str) -> Result<String, String> {
    let statement = Parser::new(sql)?.statement()?;
    let mut rows: Vec<&City> = CITIES.iter().filter(|city| statement.keeps(city)).collect();
    if let Some((column, descending)) = statement.order {
        rows.sort_by(|a, b| {
            let order = value(a, column).compare(&value(b, column)).unwrap_or(Ordering::Equal);
            if descending { order.reverse() } else { order }
        });
    }
    let Wanted::Columns(columns) = statement.wanted else {
        return Ok(format!("count(*)\n{}", rows.len()));
    };
    let header = columns.iter().map(|column| COLUMNS[*column]).collect::<Vec<_>>();
    let mut lines = vec![header.join(" | ")];
    for row in rows.into_iter().take(statement.limit) {
        let cells: Vec<_> = columns.iter().map(|column| value(row, *column).to_string()).collect();
        lines.push(cells.join(" | "));
    }
    Ok(lines.join("\n"))
}

enum Wanted {
    Columns(Vec<usize>),
    Count,
}

struct Statement {
    wanted: Wanted,
    condition: Option<(usize, Operator, Cell)>,
    order: Option<(usize, bool)>,
    limit: usize,
}

#[derive(Debug, Clone, Copy)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, PartialEq)]
enum Cell {
    Text(String),
    Number(f64),
}

impl Statement {
    fn keeps(&self, city: &City) -> bool {
        let Some((column, operator, wanted)) = &self.condition else {
            return true;
        };
        let Some(order) = value(city, *column).compare(wanted) else {
            return false;
        };
        match operator {
            Operator::Equal => order.is_eq(),
            Operator::NotEqual => order.is_ne(),
            Operator::Less => order.is_lt(),
            Operator::LessOrEqual => order.is_le(),
            Operator::Greater => order.is_gt(),
            Operator::GreaterOrEqual => order.is_ge(),
        }
    }
}

impl Cell {
    fn compare(&self, other: &Cell) -> Option<Ordering> {
        match (self, other) {
            (Cell::Text(a), Cell::Text(b)) => Some(a.cmp(b)),
            (Cell::Number(a), Cell::Number(b)) => a.partial_cmp(b),
            _ => None,
        }
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Cell::Text(text) => f.write_str(text),
            Cell::Number(number) => write!(f, "{number}"),
        }
    }
}

fn value(city: &City, column: usize) -> Cell {
    match column {
        0 => Cell::Text(city.0.to_owned()),
        1 => Cell::Text(city.1.to_owned()),
        2 => Cell::Text(city.2.to_owned()),
        3 => Cell::Number(city.3 as f64),
        _ => Cell::Number(city.4),
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Value(Cell),
    Symbol(&'static str),
}

struct Parser {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token>>,
}

/// Longer ones first.
const SYMBOLS: [&str; 11] = ["<=", ">=", "<>", "!=", "=", "<", ">", "*", "(", ")", ","];

impl Parser {
    fn new(sql: &str) -> Result<Self, String> {
        let trimmed = sql.trim();
        let mut rest = trimmed.strip_suffix(';').unwrap_or(trimmed).trim_end();
        let mut tokens = Vec::new();
        while let Some(first) = rest.chars().next() {
            if first.is_whitespace() {
                rest = rest.trim_start();
            } else if first == '\'' {
                let (text, after) = quoted(&rest[1..])?;
                tokens.push(Token::Value(Cell::Text(text)));
                rest = after;
            } else if let Some(symbol) = SYMBOLS.into_iter().find(|symbol| rest.starts_with(symbol)) {
                tokens.push(Token::Symbol(symbol));
                rest = &rest[symbol.len()..];
            } else {
                let end = rest
                    .find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '+')))
                    .unwrap_or(rest.len());
                if end == 0 {
                    return Err(format!("`{first}` is not understood; one SELECT statement is"));
                }
                let word = &rest[..end];
                tokens.push(match word.parse::<f64>() {
                    Ok(number) if number.is_finite() => Token::Value(Cell::Number(number)),
                    _ => Token::Word(word.to_owned()),
                });
                rest = &rest[end..];
            }
        }
        Ok(Self {
            tokens: tokens.into_iter().peekable(),
        })
    }

    fn statement(mut self) -> Result<Statement, String> {
        self.keyword("select")?;
        let wanted = self.wanted()?;
        self.keyword("from")?;
        match self.tokens.next() {
            Some(Token::Word(table)) if table.eq_ignore_ascii_case("cities") => {}
            other => return Err(format!("the only table is `cities`, not {}", shown(other.as_ref()))),
        }
        let condition = match self.has("where") {
            true => Some(self.condition()?),
            false => None,
        };
        let order = match self.has("order") {
            true => Some(self.order()?),
            false => None,
        };
        let limit = match self.has("limit") {
            true => self.limit()?,
            false => usize::MAX,
        };
        match self.tokens.next() {
            None => Ok(Statement {
                wanted,
                condition,
                order,
                limit,
            }),
            extra => Err(format!("{} is one too many", shown(extra.as_ref()))),
        }
    }

    fn wanted(&mut self) -> Result<Wanted, String> {
        if self.has_symbol("*") {
            return Ok(Wanted::Columns((0..COLUMNS.len()).collect()));
        }
        if self.has("count") {
            return match self.has_symbol("(") && self.has_symbol("*") && self.has_symbol(")") {
                true => Ok(Wanted::Count),
                false => Err("the only count is `count(*)`".to_owned()),
            };
        }
        let mut columns = vec![self.column()?];
        while self.has_symbol(",") {
            columns.push(self.column()?);
        }
        Ok(Wanted::Columns(columns))
    }

    fn condition(&mut self) -> Result<(usize, Operator, Cell), String> {
        let column = self.column()?;
        let operator = match self.tokens.next() {
            Some(Token::Symbol("=")) => Operator::Equal,
            Some(Token::Symbol("<>" | "!=")) => Operator::NotEqual,
            Some(Token::Symbol("<")) => Operator::Less,
            Some(Token::Symbol("<=")) => Operator::LessOrEqual,
            Some(Token::Symbol(">")) => Operator::Greater,
            Some(Token::Symbol(">=")) => Operator::GreaterOrEqual,
            other => {
                let other = shown(other.as_ref());
                return Err(format!("an operator is =, <>, <, <=, > or >=, not {other}"));
            }
        };
        let wanted = match self.tokens.next() {
            Some(Token::Value(cell)) => cell,
            other => {
                let other = shown(other.as_ref());
                return Err(format!("a value is a number or 'text', not {other}"));
            }
        };
        if value(&CITIES[0], column).compare(&wanted).is_none() {
            return Err(format!("`{}` cannot be compared with `{wanted}`", COLUMNS[column]));
        }
        Ok((column, operator, wanted))
    }

    fn order(&mut self) -> Result<(usize, bool), String> {
        self.keyword("by")?;
        let column = self.column()?;
        let descending = self.has("desc");
        if !descending {
            self.has("asc");
        }
        Ok((column, descending))
    }

    fn limit(&mut self) -> Result<usize, String> {
        match self.tokens.next() {
            Some(Token::Value(Cell::Number(number))) if number >= 0.0 && number.fract() == 0.0 => Ok(number as usize),
            other => Err(format!("a limit is a whole number, not {}", shown(other.as_ref()))),
        }
    }

    fn column(&mut self) -> Result<usize, String> {
        let token = self.tokens.next();
        let found = match &token {
            Some(Token::Word(word)) => COLUMNS.iter().position(|column| word.eq_ignore_ascii_case(column)),
            _ => None,
        };
        found.ok_or_else(|| format!("a column is {}, not {}", COLUMNS.join(", "), shown(token.as_ref())))
    }

    fn keyword(&mut self, keyword: &str) -> Result<(), String> {
        match self.has(keyword) {
            true => Ok(()),
            false => Err(format!(
                "`{}` was expected, not {}",
                keyword.to_uppercase(),
                shown(self.tokens.peek())
            )),
        }
    }

    fn has(&mut self, keyword: &str) -> bool {
        self.tokens
            .next_if(|token| matches!(token, Token::Word(word) if word.eq_ignore_ascii_case(keyword)))
            .is_some()
    }

    fn has_symbol(&mut self, symbol: &str) -> bool {
        self.tokens
            .next_if(|token| matches!(token, Token::Symbol(found) if *found == symbol))
            .is_some()
    }
}

/// The text up to the closing quote, `''` being one quote, and what follows.
fn quoted(rest: &str) -> Result<(String, &str), String> {
    let mut text = String::new();
    let mut rest = rest;
    while let Some(end) = rest.find('\'') {
        text.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('\'') {
            Some(after) => {
                text.push('\'');
                rest = after;
            }
            None => return Ok((text, rest)),
        }
    }
    Err("a text has no closing quote".to_owned())
}

fn shown(token: Option<&Token>) -> String {
    match token {
        None => "the end".to_owned(),
        Some(Token::Word(word)) => format!("`{word}`"),
        Some(Token::Value(cell)) => format!("`{cell}`"),
        Some(Token::Symbol(symbol)) => format!("`{symbol}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::run;

    #[test]
    fn statements_that_are_understood() {
        for (sql, expected) in [
            ("select count(*) from cities", "count(*)\n12"),
            ("SELECT name FROM cities LIMIT 2;", "name\nBerlin\nCairo"),
            (
                "SELECT name, population FROM cities WHERE continent = 'Europe' ORDER BY population DESC LIMIT 2",
                "name | population\nLondon | 8900000\nBerlin | 3700000",
            ),
            (
                "select * from cities where name='Quito'",
                "name | country | continent | population | latitude\nQuito | Ecuador | South America | 1800000 | -0.2",
            ),
            (
                "SELECT name FROM cities WHERE latitude <= -33.9 ORDER BY latitude",
                "name\nWellington\nSydney",
            ),
            ("SELECT count(*) FROM cities WHERE population <> 10000000", "count(*)\n10"),
            ("SELECT name FROM cities WHERE name = 'O''Brien'", "name"),
            ("SELECT name FROM cities LIMIT 0", "name"),
        ] {
            assert_eq!(run(sql).as_deref(), Ok(expected), "{sql}");
        }
    }

    #[test]
    fn statements_that_are_not_say_what_was_expected() {
        for (sql, expected) in [
            ("", "`SELECT` was expected, not the end"),
            ("DROP TABLE cities", "`SELECT` was expected, not `DROP`"),
            ("DELETE FROM cities", "`SELECT` was expected, not `DELETE`"),
            ("SELECT name FROM users", "the only table is `cities`, not `users`"),
            (
                "SELECT password FROM cities",
                "a column is name, country, continent, population, latitude, not `password`",
            ),
            (
                "SELECT name FROM cities; DROP TABLE cities",
                "`;` is not understood; one SELECT statement is",
            ),
            (
                "SELECT name FROM cities WHERE name LIKE 'B%'",
                "an operator is =, <>, <, <=, > or >=, not `LIKE`",
            ),
            (
                "SELECT name FROM cities WHERE name = Berlin",
                "a value is a number or 'text', not `Berlin`",
            ),
            (
                "SELECT name FROM cities WHERE population = 'x'",
                "`population` cannot be compared with `x`",
            ),
            ("SELECT name FROM cities WHERE name = 'x", "a text has no closing quote"),
            ("SELECT name FROM cities WHERE name = 'x' OR 1 = 1", "`OR` is one too many"),
            ("SELECT name FROM cities LIMIT -1", "a limit is a whole number, not `-1`"),
            ("SELECT count(name) FROM cities", "the only count is `count(*)`"),
            ("SELECT name FROM cities ORDER name", "`BY` was expected, not `name`"),
            (
                "SELECT \u{1F600} FROM cities",
                "`\u{1F600}` is not understood; one SELECT statement is",
            ),
        ] {
            assert_eq!(run(sql).as_ref().map_err(String::as_str), Err(expected), "{sql}");
        }
    }
}
