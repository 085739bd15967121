//! The JSON grammar as tables: which texts are a value and which are not.

use super::*;

const VALUES: [&str; 52] = [
    "0",
    "-0",
    "1",
    "-1",
    "10",
    "1.5",
    "-0.1",
    "1e1",
    "1E1",
    "1e+1",
    "1e-1",
    "0e1",
    "0.0e+00",
    "123456789012345678901234567890",
    "1.7976931348623157e308",
    "5e-324",
    "1e-400",
    "true",
    "false",
    "null",
    "[]",
    "[ ]",
    "[1,2]",
    "[ 1 , [ 2 ] , { } ]",
    "{}",
    "{ }",
    r#"{"a":1}"#,
    "{\"a\" :\t1\r\n, \"b\":2}",
    r#"{"":0}"#,
    r#"{"a":{"a":{"a":1}}}"#,
    r#"[{"a":1},{"a":2}]"#,
    r#""""#,
    r#"" ""#,
    r#""plain text""#,
    r#""ünï ✓ 😀""#,
    r#""\"\\\/\b\f\n\r\t""#,
    r#""\u0000\u001f\u007f""#,
    r#""\u00e9\u20AC""#,
    r#""\ud83d\ude00""#,
    r#""\uD83D\uDE00""#,
    r#""\uffff""#,
    "\"\u{7f}\"",
    "\"\u{2028}\u{2029}\"",
    "\"\u{feff}\"",
    "\"\u{10ffff}\"",
    r#""12345678\"1234567\\1234567""#,
    r#""aaaaaaa\u0061aaaaaaaa""#,
    r#"["a",1,null,true,{"b":[]}]"#,
    r#"{"é":1,"e":2}"#,
    r#"{"a":"a","b":"a"}"#,
    r#"{"__proto__":{"x":1},"constructor":1}"#,
    r#"{"__entity":{"type":"A","id":"b"}}"#,
];

const NOT_VALUES: [&str; 96] = [
    "",
    " ",
    "nul",
    "nulll",
    "True",
    "NULL",
    "undefined",
    "NaN",
    "-NaN",
    "Infinity",
    "-Infinity",
    "+1",
    "-",
    "--1",
    "- 1",
    "01",
    "-01",
    "00",
    "1.",
    ".1",
    "-.1",
    "1.e1",
    "1e",
    "1e+",
    "1E-",
    "1e1.5",
    "1e+-1",
    "0x10",
    "1_000",
    "1,",
    "1a",
    "1 2",
    "1eE2",
    "٣",
    "[",
    "]",
    "[1",
    "[1,]",
    "[,1]",
    "[,]",
    "[1,,2]",
    "[1 2]",
    "[1:2]",
    "[1}",
    "[1]]",
    "{",
    "}",
    "{]",
    r#"{"a"}"#,
    r#"{"a":}"#,
    r#"{"a":1"#,
    r#"{"a":1,}"#,
    r#"{,"a":1}"#,
    r#"{"a":1,,"b":2}"#,
    r#"{"a":1 "b":2}"#,
    r#"{"a" 1}"#,
    r#"{"a"::1}"#,
    r#"{"a":1}}"#,
    "{a:1}",
    "{'a':1}",
    "{1:1}",
    "{null:1}",
    r#"{"a":1}{"b":2}"#,
    r#"{"a":1}#"#,
    "'a'",
    "`a`",
    r#"""#,
    r#""a"#,
    r#""\"#,
    r#""\x41""#,
    r#""\a""#,
    r#""\'""#,
    r#""\0""#,
    r#""\u""#,
    r#""\u12""#,
    r#""\u12G4""#,
    r#""\u+123""#,
    r#""\U0041""#,
    r#""\ud800""#,
    r#""\udc00""#,
    r#""\ud800\ud800""#,
    r#""\ud800\u0041""#,
    r#""\ud800x""#,
    r#""\ud83d\n""#,
    r#""\ud83d\"#,
    "\"\t\"",
    "\"\n\"",
    "\"\u{0}\"",
    "\"\u{1f}\"",
    "\u{feff}1",
    "1\u{feff}",
    "\u{a0}1",
    "1\u{c}",
    "/* */1",
    "1//",
    "#1",
];

#[test]
fn every_value_of_the_grammar_is_read_and_kept_byte_for_byte() {
    for value in VALUES {
        assert_eq!(check(value.as_bytes(), &Bounds::default()), Ok(()), "{value}");
        serde_json::from_str::<Value>(value).unwrap_or_else(|error| panic!("{value}: {error}"));
        let body = call(&format!(r#"{{"value":{value}}}"#));
        let read = request(&body);
        assert_eq!(read.body, body.as_bytes(), "{value}");
        let arguments = read.params.unwrap().arguments.unwrap();
        assert_eq!(arguments, format!(r#"{{"value":{value}}}"#).as_bytes());
    }
}

#[test]
fn nothing_else_is() {
    for value in NOT_VALUES {
        let fault = check(value.as_bytes(), &Bounds::default()).expect_err(value);
        assert_eq!(fault.reason, Reason::MalformedJson, "{value}: {fault}");
        assert_eq!(
            reason(call(&format!(r#"{{"value":{value}}}"#))),
            Reason::MalformedJson,
            "{value}"
        );
        assert!(
            matches!(reason(value), Reason::MalformedJson | Reason::InvalidRequest),
            "{value}"
        );
    }
}

#[test]
fn numbers_that_overflow_are_refused_wherever_they_stand() {
    for number in ["1e309", "-1e309", "1e99999", "123e307", &"9".repeat(310)] {
        assert_eq!(
            reason(call(&format!(r#"{{"a":[{{"b":{number}}}]}}"#))),
            Reason::MalformedJson,
            "{number}"
        );
    }
}

#[test]
fn white_space_is_the_four_characters() {
    for space in ["\u{b}", "\u{c}", "\u{85}", "\u{a0}", "\u{2003}", "\u{3000}", "\0"] {
        assert_eq!(reason(format!("{{{space}}}")), Reason::MalformedJson, "{space:?}");
    }
    request(" \t\r\n{ \t\r\n\"jsonrpc\" \n:\n \"2.0\" , \"id\" : 1 , \"method\" : \"ping\" } \r\n\t ");
}
