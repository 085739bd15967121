//! The demo's table of cities and the one statement that reads it. The statement looks like SQL so that policies have
//! something to guard; there is no database behind it, and nothing that a statement could change.

const COLUMNS: [&str; 5] = ["name", "country", "continent", "population", "latitude"];

/// Round figures.
const CITIES: [[&str; COLUMNS.len()]; 12] = [
    ["Berlin", "Germany", "Europe", "3700000", "52.5"],
    ["Cairo", "Egypt", "Africa", "10000000", "30"],
    ["Lima", "Peru", "South America", "10000000", "-12"],
    ["Lisbon", "Portugal", "Europe", "550000", "38.7"],
    ["London", "United Kingdom", "Europe", "8900000", "51.5"],
    ["Nairobi", "Kenya", "Africa", "4400000", "-1.3"],
    ["Quito", "Ecuador", "South America", "1800000", "-0.2"],
    ["Reykjavik", "Iceland", "Europe", "140000", "64.1"],
    ["Sydney", "Australia", "Oceania", "5300000", "-33.9"],
    ["Tokyo", "Japan", "Asia", "14000000", "35.7"],
    ["Toronto", "Canada", "North America", "2800000", "43.7"],
    ["Wellington", "New Zealand", "Oceania", "210000", "-41.3"],
];

/// The whole grammar, for the tool's description and for the refusal of anything else.
pub(super) fn grammar() -> String {
    format!(
        "`SELECT columns FROM cities [WHERE column = literal]`, where columns are `*` or some of {}, and a literal is \
         'text' or a number",
        COLUMNS.join(", ")
    )
}

/// Runs a statement: a header line and a line per row, columns separated by ` | `.
pub(super) fn run(sql: &str) -> Result<String, String> {
    let (columns, filter) = parse(sql).ok_or_else(|| format!("the only statement allowed is {}", grammar()))?;
    let rows = CITIES
        .iter()
        .filter(|city| filter.is_none_or(|(column, literal)| city[column] == literal));
    let line = |row: &[&str; COLUMNS.len()]| columns.iter().map(|column| row[*column]).collect::<Vec<_>>().join(" | ");
    Ok([&COLUMNS].into_iter().chain(rows).map(line).collect::<Vec<_>>().join("\n"))
}

type Filter<'a> = Option<(usize, &'a str)>;

fn parse(sql: &str) -> Option<(Vec<usize>, Filter<'_>)> {
    let tokens = tokens(sql)?;
    let from = tokens.iter().position(|token| token.eq_ignore_ascii_case("from"))?;
    let columns = match &tokens[..from] {
        [select, "*"] if select.eq_ignore_ascii_case("select") => (0..COLUMNS.len()).collect(),
        [select, list @ ..] if select.eq_ignore_ascii_case("select") => {
            list.split(|token| *token == ",").map(only_column).collect::<Option<_>>()?
        }
        _ => return None,
    };
    let filter = match &tokens[from + 1..] {
        [table] if table.eq_ignore_ascii_case("cities") => None,
        [table, when, column, "=", value] if table.eq_ignore_ascii_case("cities") && when.eq_ignore_ascii_case("where") => {
            Some((only_column(&[column])?, literal(value)?))
        }
        _ => return None,
    };
    Some((columns, filter))
}

/// Words, single characters of `,=*`, and texts with their quotes. A text has no way to hold a quote.
fn tokens(sql: &str) -> Option<Vec<&str>> {
    let mut tokens = Vec::new();
    let mut rest = sql.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '\'' => rest[1..].find('\'')? + 2,
            ',' | '=' | '*' => 1,
            _ => rest
                .find(|c: char| c.is_whitespace() || "',=*".contains(c))
                .unwrap_or(rest.len()),
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    Some(tokens)
}

fn only_column(tokens: &[&str]) -> Option<usize> {
    let [name] = tokens else { return None };
    COLUMNS.iter().position(|column| name.eq_ignore_ascii_case(column))
}

fn literal(token: &str) -> Option<&str> {
    let text = token.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
    text.or_else(|| token.parse::<f64>().is_ok().then_some(token))
}

#[cfg(test)]
mod tests;
