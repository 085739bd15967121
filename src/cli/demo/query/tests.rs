//! The statements that the demo's table understands, and the one sentence that answers everything else.

use super::run;

#[test]
fn statements_that_are_understood() {
    for (sql, expected) in [
        (
            "SELECT name, population FROM cities WHERE continent = 'Oceania'",
            "name | population\nSydney | 5300000\nWellington | 210000",
        ),
        (
            "select * from cities where name='Quito'",
            "name | country | continent | population | latitude\nQuito | Ecuador | South America | 1800000 | -0.2",
        ),
        (" SELECT\n Name FROM Cities WHERE latitude = -33.9 ", "name\nSydney"),
        ("SELECT name FROM cities WHERE country = 'Atlantis'", "name"),
    ] {
        assert_eq!(run(sql).as_deref(), Ok(expected), "{sql}");
    }
    assert_eq!(run("SELECT name FROM cities").unwrap().lines().count(), 13);
}

#[test]
fn anything_else_is_told_what_is_allowed() {
    let sentence = "the only statement allowed is `SELECT columns FROM cities [WHERE column = literal]`, where columns are `*` or \
                    some of name, country, continent, population, latitude, and a literal is 'text' or a number";
    for sql in [
        "",
        "DROP TABLE cities",
        "DELETE FROM cities",
        "SELECT FROM cities",
        "SELECT name,, country FROM cities",
        "SELECT name country FROM cities",
        "SELECT name FROM users",
        "SELECT password FROM cities",
        "SELECT 'name' FROM cities",
        "SELECT count(*) FROM cities",
        "SELECT name FROM cities;",
        "SELECT name FROM cities; DROP TABLE cities",
        "SELECT name FROM cities ORDER BY name",
        "SELECT name FROM cities LIMIT 2",
        "SELECT name FROM cities WHERE name LIKE 'B%'",
        "SELECT name FROM cities WHERE population > 1",
        "SELECT name FROM cities WHERE name = Berlin",
        "SELECT name FROM cities WHERE name = 'x",
        "SELECT name FROM cities WHERE name = '",
        "SELECT name FROM cities WHERE name = 'O''Brien'",
        "SELECT name FROM cities WHERE name = 'x' OR 1 = 1",
        "SELECT \u{1F600} FROM cities",
    ] {
        assert_eq!(run(sql).as_ref().map_err(String::as_str), Err(sentence), "{sql}");
    }
}
