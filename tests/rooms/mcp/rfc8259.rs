//! Cases from the grammar of RFC 8259, production by production, like JSON test suites: what every parser must accept, what
//! none may accept, and what the grammar leaves open, with the strict reader's choice and its reason.

use super::*;

enum Must {
    Accept,
    Refuse,
    /// The grammar leaves it open; the strict reader accepts it, or refuses it, for this reason.
    MayAccept(&'static str),
    MayRefuse(&'static str),
}
use Must::{Accept, MayAccept, MayRefuse, Refuse};

fn is_taken(text: &[u8]) -> bool {
    check(text, &Bounds::default()).is_ok()
}

fn held(production: &str, cases: Vec<(Vec<u8>, Must)>) {
    for (text, must) in cases {
        let (wanted, why) = match must {
            Accept => (true, "the grammar has it"),
            Refuse => (false, "the grammar has it not"),
            MayAccept(why) => (true, why),
            MayRefuse(why) => (false, why),
        };
        let shown = String::from_utf8_lossy(&text);
        let shown = shown.chars().take(120).collect::<String>();
        assert_eq!(is_taken(&text), wanted, "{production}: {shown:?}: {why}");
        // As a value, as a member's value and as an element: a production means the same in each place.
        if must_be_a_value(production) {
            for (before, after) in [("[", "]"), ("{\"a\":", "}"), ("[[{\"a\":[", "]}]]"), ("[0,", ",0]")] {
                let wrapped = [before.as_bytes(), &text, after.as_bytes()].concat();
                assert_eq!(
                    is_taken(&wrapped),
                    wanted,
                    "{production} within {before}…{after}: {shown:?}: {why}"
                );
            }
        }
    }
}

fn must_be_a_value(production: &str) -> bool {
    matches!(production, "number" | "string" | "literal" | "escape")
}

fn texts<const N: usize>(cases: [(&str, Must); N]) -> Vec<(Vec<u8>, Must)> {
    cases
        .into_iter()
        .map(|(text, must)| (text.as_bytes().to_vec(), must))
        .collect()
}

#[test]
fn every_number_of_the_grammar_and_no_other() {
    // number = [ minus ] int [ frac ] [ exp ]: some right and some wrong texts for each part, in every combination.
    let minus = [
        ("", true),
        ("-", true),
        ("+", false),
        ("--", false),
        ("- ", false),
        ("\u{2212}", false),
    ];
    let int = [
        ("0", true),
        ("7", true),
        ("10", true),
        ("00", false),
        ("07", false),
        ("", false),
        ("x", false),
        ("1_0", false),
        ("0x1", false),
    ];
    let frac = [
        ("", true),
        (".0", true),
        (".50", true),
        (".", false),
        (".-1", false),
        (".5.5", false),
        (",5", false),
    ];
    let exp = [
        ("", true),
        ("e1", true),
        ("E-2", true),
        ("e+0", true),
        ("e", false),
        ("e+", false),
        ("e1.0", false),
        ("e--1", false),
        ("ee1", false),
        (" e1", false),
    ];
    let mut cases = Vec::new();
    for (minus, minus_ok) in minus {
        for (int, int_ok) in int {
            for (frac, frac_ok) in frac {
                for (exp, exp_ok) in exp {
                    let text = format!("{minus}{int}{frac}{exp}");
                    let right = minus_ok && int_ok && frac_ok && exp_ok;
                    // `[0,5]` holds two numbers, and `0,-1` in an array does too.
                    if !text.contains(',') && !text.is_empty() {
                        cases.push((text.into_bytes(), if right { Accept } else { Refuse }));
                    }
                }
            }
        }
    }
    assert!(cases.len() > 3_000);
    held("number", cases);
}

#[test]
fn what_the_grammar_leaves_open_about_numbers_is_settled() {
    let huge = "a number that no double holds is infinite to some parsers and text to others";
    let long = "the length of a number is bounded";
    let near = "within the range of a double its nearest is meant by all, and the text itself is kept";
    held(
        "number",
        texts([
            ("1e309", MayRefuse(huge)),
            ("-1e309", MayRefuse(huge)),
            ("1e99999999999999999999", MayRefuse(huge)),
            ("1e-99999999999999999999", MayAccept("it is nothing to all parsers")),
            ("123123e100000", MayRefuse(huge)),
            (
                "0.4e00669999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999999969999999006",
                MayRefuse(huge),
            ),
            ("-0", MayAccept(near)),
            ("-0.0", MayAccept(near)),
            ("100000000000000000000", MayAccept(near)),
            ("-237462374673276894279832749832423479823246327846", MayAccept(near)),
            ("0.1000000000000000055511151231257827", MayAccept(near)),
            ("1.797693134862315808e308", MayRefuse(huge)),
            ("1.7976931348623157e308", MayAccept(near)),
        ]),
    );
    let digits = |count: usize| "1".repeat(count).into_bytes();
    held(
        "number",
        vec![
            (digits(300), MayAccept(near)),
            (digits(301), MayRefuse(long)),
            (digits(5_000), MayRefuse(long)),
        ],
    );
}

#[test]
fn every_character_stands_in_a_string_as_the_grammar_says() {
    // unescaped = %x20-21 / %x23-5B / %x5D-10FFFF
    let mut cases = Vec::new();
    for char in (0..=0x10_ffffu32)
        .filter_map(char::from_u32)
        .filter(|char| (*char as u32) < 0x3000 || (*char as u32).is_multiple_of(251))
    {
        let must = if char < ' ' || char == '"' || char == '\\' {
            Refuse
        } else {
            Accept
        };
        // A bare quote ends the string, and something follows it.
        cases.push((format!("\"a{char}c\"").into_bytes(), must));
    }
    held("character", cases);
}

#[test]
fn every_escape_of_the_grammar_and_no_other() {
    let mut cases = Vec::new();
    for byte in 0x20..0x7fu8 {
        let text = format!("\"\\{}\"", char::from(byte));
        let must = if b"\"\\/bfnrt".contains(&byte) { Accept } else { Refuse };
        // `"\""` is an escaped quote and ends nothing.
        cases.push(match byte {
            b'"' => (b"\"\\\"\"".to_vec(), Accept),
            _ => (text.into_bytes(), must),
        });
    }
    for (digits, must) in [
        ("0041", Accept),
        ("00e9", Accept),
        ("00E9", Accept),
        ("FFFF", Accept),
        ("041", Refuse),
        ("", Refuse),
        ("00g9", Refuse),
        ("+041", Refuse),
        ("0x41", Refuse),
        (" 041", Refuse),
        ("\u{ff10}041", Refuse),
        ("d83d\\ude00", Accept),
        ("D83D\\uDE00", Accept),
        ("DBFF\\uDFFF", Accept),
        (
            "d83d",
            MayRefuse("a lone surrogate is no character: parsers replace, keep or refuse it"),
        ),
        ("de00", MayRefuse("a lone surrogate is no character")),
        ("d83d\\ud83d", MayRefuse("a lone surrogate is no character")),
        ("d83d\\u0041", MayRefuse("a lone surrogate is no character")),
        ("d83dx", MayRefuse("a lone surrogate is no character")),
        ("ude00\\ud83d", Refuse),
        (
            "0000",
            MayAccept("in a value it is a character like others; in a name it is refused"),
        ),
    ] {
        cases.push((format!("\"\\u{digits}\"").into_bytes(), must));
    }
    held("escape", cases);
    assert!(!is_taken(br#"{"a\u0000":1}"#));
    held(
        "escape",
        texts([
            (r#""\U0041""#, Refuse),
            (r#""\x41""#, Refuse),
            (r#""\u{41}""#, Refuse),
            ("\"\\\u{e9}\"", Refuse),
            ("\"\\\n\"", Refuse),
        ]),
    );
}

#[test]
fn every_byte_sequence_that_is_no_utf8_is_refused() {
    let within = |bytes: &[u8]| [b"\"".as_slice(), bytes, b"\""].concat();
    let mut cases = vec![
        (within(&[0x80]), Refuse),
        (within(&[0xbf]), Refuse),
        (within(&[0xc0, 0xaf]), Refuse),
        (within(&[0xc1, 0xbf]), Refuse),
        (within(&[0xe0, 0x80, 0xaf]), Refuse),
        (within(&[0xed, 0xa0, 0x80]), Refuse),
        (within(&[0xed, 0xbf, 0xbf]), Refuse),
        (within(&[0xf0, 0x80, 0x80, 0xaf]), Refuse),
        (within(&[0xf4, 0x90, 0x80, 0x80]), Refuse),
        (within(&[0xf8, 0x88, 0x80, 0x80, 0x80]), Refuse),
        (within(&[0xfe]), Refuse),
        (within(&[0xff]), Refuse),
        (within(&[0xe2, 0x82]), Refuse),
        (within(&[0xe2, 0x82, 0xac]), Accept),
        (
            b"\xef\xbb\xbf{}".to_vec(),
            MayRefuse("a parser may ignore a byte order mark, others do not"),
        ),
        ("\"a\"".encode_utf16().flat_map(u16::to_le_bytes).collect(), Refuse),
        ("\"a\"".encode_utf16().flat_map(u16::to_be_bytes).collect(), Refuse),
    ];
    for second in 0x00..=0xffu8 {
        let is_continuation = (0x80..=0xbf).contains(&second);
        let must = if is_continuation { Accept } else { Refuse };
        cases.push((within(&[0xc3, second]), must));
    }
    held("utf-8", cases);
}

#[test]
fn objects_and_arrays_are_built_as_the_grammar_says() {
    let twice = "which of two members counts is for each parser to say";
    held(
        "structure",
        texts([
            ("[]", Accept),
            ("[[]]", Accept),
            ("[1]", Accept),
            ("[1,1]", Accept),
            ("{}", Accept),
            (r#"{"a":{}}"#, Accept),
            (r#"{"":""}"#, Accept),
            (r#"[{"a":1},{"a":1}]"#, Accept),
            ("[", Refuse),
            ("]", Refuse),
            ("[]]", Refuse),
            ("[[]", Refuse),
            ("[1,]", Refuse),
            ("[,1]", Refuse),
            ("[,]", Refuse),
            ("[1,,1]", Refuse),
            ("[1 1]", Refuse),
            ("[1:1]", Refuse),
            ("[1}", Refuse),
            ("(1)", Refuse),
            ("{", Refuse),
            ("}", Refuse),
            ("{]", Refuse),
            (r#"{"a"}"#, Refuse),
            (r#"{"a":}"#, Refuse),
            (r#"{"a":1,}"#, Refuse),
            (r#"{,"a":1}"#, Refuse),
            (r#"{"a":1,,"b":1}"#, Refuse),
            (r#"{"a":1 "b":1}"#, Refuse),
            (r#"{"a" 1}"#, Refuse),
            (r#"{"a"::1}"#, Refuse),
            (r#"{"a":1:2}"#, Refuse),
            (r#"{"a"=1}"#, Refuse),
            (r#"{:1}"#, Refuse),
            ("{a:1}", Refuse),
            ("{'a':1}", Refuse),
            ("{1:1}", Refuse),
            ("{null:1}", Refuse),
            (r#"{["a"]:1}"#, Refuse),
            (r#"{"a":1}}"#, Refuse),
            (r#"{"a":1}{"b":1}"#, Refuse),
            (r#"{"a":1}["b"]"#, Refuse),
            (r#"{"a":1};"#, Refuse),
            ("1 2", Refuse),
            ("[1]x", Refuse),
            ("<null>", Refuse),
            (r#"{"a":1}/**/"#, Refuse),
            (r#"{"a":/*x*/1}"#, Refuse),
            ("{\"a\":1}//x\n", Refuse),
            ("# x\n1", Refuse),
            (r#"{"a":1,"a":1}"#, MayRefuse(twice)),
            (r#"{"a":1,"b":2,"a":3}"#, MayRefuse(twice)),
            (r#"{"a":1,"\u0061":2}"#, MayRefuse(twice)),
            (
                r#"{"a":1,"A":2}"#,
                MayAccept("data of servers has such names; what callers send is held to more"),
            ),
        ]),
    );
}

#[test]
fn white_space_is_four_characters_and_stands_between_tokens_only() {
    let tokens = ["{", "\"a\"", ":", "[", "1", ",", "true", "]", "}"];
    let mut cases = Vec::new();
    for space in ["\u{20}", "\t", "\n", "\r", "\r\n", " \t\r\n "] {
        for at in 0..=tokens.len() {
            let text = format!("{}{space}{}", tokens[..at].concat(), tokens[at..].concat());
            cases.push((text.into_bytes(), Accept));
        }
        for broken in ["t{}rue", "-{}1", "1{}.5", "1e{}5", "nul{}l"] {
            cases.push((broken.replace("{}", space).into_bytes(), Refuse));
        }
    }
    for other in [
        "\u{b}", "\u{c}", "\u{0}", "\u{85}", "\u{a0}", "\u{2003}", "\u{2028}", "\u{200b}", "\u{2060}", "\u{feff}", "\u{1f}",
    ] {
        for at in 0..=tokens.len() {
            let text = format!("{}{other}{}", tokens[..at].concat(), tokens[at..].concat());
            cases.push((text.into_bytes(), Refuse));
        }
    }
    held("white space", cases);
}

#[test]
fn there_are_three_literals_in_one_spelling() {
    let mut cases = texts([("true", Accept), ("false", Accept), ("null", Accept)]);
    for literal in ["true", "false", "null"] {
        for at in 0..literal.len() {
            let mut upper = literal.to_owned();
            upper[at..=at].make_ascii_uppercase();
            cases.push((upper.into_bytes(), Refuse));
            cases.push((format!("{}{}", &literal[..at], &literal[at + 1..]).into_bytes(), Refuse));
            if at > 0 {
                cases.push((literal.as_bytes()[..at].to_vec(), Refuse));
            }
        }
        cases.push((format!("{literal}{}", &literal[literal.len() - 1..]).into_bytes(), Refuse));
    }
    cases.extend(texts([
        ("NaN", Refuse),
        ("Infinity", Refuse),
        ("-Infinity", Refuse),
        ("undefined", Refuse),
        ("nil", Refuse),
        ("None", Refuse),
    ]));
    held("literal", cases);
}

/// Texts of every production, each with every byte removed, inserted or replaced.
#[test]
fn no_slip_of_a_byte_makes_it_more_lenient_than_another_strict_parser() {
    let texts: [&[u8]; 8] = [
        br#"{"a":[1,-0.5e+10,true,false,null,"b"],"c":{}}"#,
        br#"[ "\u00e9\ud83d\ude00\"\\\/\b\f\n\r\t" , "" ]"#,
        "{\"\u{e9}\":\"\u{20ac}\",\"\u{1f600}\":[[[]]]}".as_bytes(),
        b"-12.5E-3",
        b"\r\n\t [0] ",
        br#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{}}"#,
        br#""long enough for the words of eight bytes \u0041 each""#,
        br#"[[],{},"",0,[{}],{"x":[]}]"#,
    ];
    const BYTES: &[u8] = b"\0\x01\t\n\r \"\\/,:[]{}-+.0159eEaAbfnrtuUxX'#`~\x7f\x80\xbf\xc3\xe2\xed\xf0\xff";
    let (mut tried, mut taken) = (0, 0);
    for text in texts {
        for at in 0..=text.len() {
            let (before, after) = text.split_at(at);
            let rest = after.get(1..).unwrap_or_default();
            let one = BYTES
                .iter()
                .flat_map(|byte| [[before, &[*byte], after].concat(), [before, &[*byte], rest].concat()]);
            for slip in one.chain([[before, rest].concat(), before.to_vec()]) {
                tried += 1;
                let ours = check(&slip, &Bounds::default());
                let theirs = serde_json::from_slice::<Value>(&slip);
                let shown = String::from_utf8_lossy(&slip);
                taken += usize::from(ours.is_ok());
                match (ours, theirs) {
                    (Ok(()), Err(error)) => panic!("taken, though {error}: {shown:?}"),
                    // The strict reader refuses more than the grammar does, each time for a reason of its own.
                    (Err(fault), Ok(_)) => {
                        let twofold = fault.reason == Reason::AmbiguousJson || fault.detail.contains("too large to be read");
                        assert!(twofold, "refused for {}: {shown:?}", fault.detail);
                    }
                    (Ok(()), Ok(_)) | (Err(_), Err(_)) => {}
                }
            }
        }
    }
    assert!(tried > 20_000 && taken > 1_000, "{tried} {taken}");
}
