//! Bodies that two parsers could read differently, and bodies that are no message: T1 to T8 of the threat catalogue. The
//! rooms test what the strict reader says of each, the stories that none of them reaches a server.

pub fn call(arguments: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"echo","arguments":{arguments}}}}}"#)
}

fn call_with(params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#)
}

fn ping_with_id(id: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#)
}

fn owned<const N: usize>(bodies: [&str; N]) -> Vec<String> {
    bodies.map(str::to_owned).into()
}

/// T1: the same member twice, at every depth and with every spelling of its name.
pub fn twice() -> Vec<String> {
    let mut bodies = owned([
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","method":"tools/call"}"#,
        r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","jsonrpc":"2.0","id":1,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a"},"params":{"name":"b"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"a"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","name":"delete_file"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{},"arguments":{"text":"hi"}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","_meta":{},"_meta":{}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_meta":{"x":1,"\u0078":1}}}"#,
    ]);
    // One character of the name as an escape, with hexadecimal digits in lower and upper case, in one or both members.
    for name in [
        "name",
        "n\\u0061me",
        "\\u006eame",
        "\\u006Eame",
        "nam\\u0065",
        "\\u006e\\u0061\\u006d\\u0065",
    ] {
        bodies.push(call_with(&format!(r#"{{"name":"echo","{name}":"delete_file"}}"#)));
        bodies.push(call_with(&format!(r#"{{"{name}":"delete_file","n\u0061me":"echo"}}"#)));
    }
    for arguments in [
        r#"{"path":"/a","path":"/b"}"#,
        r#"{"path":"/a","path":"/a"}"#,
        r#"{"path":null,"path":"/a"}"#,
        r#"{"a":[[{"b":{"c":1,"d":2,"c":3}}]]}"#,
        r#"{"\ud83d\ude00":1,"😀":2}"#,
        r#"{"\uD83D\uDE00":1,"\ud83d\ude00":2}"#,
        r#"{"a\/b":1,"a/b":2}"#,
        r#"{"a\u002fb":1,"a\/b":2}"#,
        r#"{"\t":1,"\u0009":2}"#,
        r#"{"\n":1,"\u000A":2}"#,
        r#"{"\"":1,"\u0022":2}"#,
        r#"{"\\":1,"\u005c":2}"#,
        r#"{"é":1,"\u00e9":2}"#,
        r#"{"":1,"":2}"#,
        r#"{" ":1,"\u0020":2}"#,
        r#"{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1,"h":1,"i":1,"j":1,"k":1,"b":2}"#,
    ] {
        bodies.push(call(arguments));
    }
    for depth in 0..60 {
        let (objects, lists) = (r#"{"a":"#.repeat(depth), "[".repeat(depth));
        bodies.push(call(&format!(r#"{objects}{{"x":1,"\u0078":2}}{}"#, "}".repeat(depth))));
        bodies.push(call(&format!(r#"{{"a":{lists}{{"x":1,"x":1}}{}}}"#, "]".repeat(depth))));
    }
    bodies
}

/// T2: names that are equal after case folding.
pub fn folded() -> Vec<String> {
    let mut bodies = owned([
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","Method":"tools/call"}"#,
        r#"{"JSONRPC":"2.0","id":1,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","Id":1,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","paramS":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","param\u017f":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","paramſ":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","Name":"b"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"NAME":"b"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","argumentſ":{}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","tas\u212a":{}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_Meta":{}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_meta":{"io.modelcontextprotocol/ProtocolVersion":"2026-07-28"}}}"#,
    ]);
    for arguments in [
        r#"{"path":"/a","Path":"/b"}"#,
        r#"{"mask":1,"mas\u212a":2}"#,
        r#"{"straße":1,"STRAßE":2}"#,
        r#"{"ÄRGER":1,"ärger":2}"#,
        r#"{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1,"h":1,"i":1,"j":1,"K":1,"\u212a":2}"#,
    ] {
        bodies.push(call(arguments));
    }
    bodies
}

/// T2: unknown members in the envelope.
pub fn strangers() -> Vec<String> {
    owned([
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","extra":1}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{},"_meta":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","name":"echo"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","":1}"#,
    ])
}

/// T2: unknown members beside the name of a tool.
pub fn strange_params() -> Vec<String> {
    let strangers = ["extra", "toolName", "arguments ", "cursor", "uri", "protocolVersion", "ref"];
    let with = |stranger: &str| call_with(&format!(r#"{{"name":"echo","{stranger}":"x"}}"#));
    strangers.map(with).into()
}

/// T3: not a request, notification or response.
pub fn shapeless() -> Vec<String> {
    let mut bodies = owned([
        r#""ping""#,
        "1",
        "null",
        "{}",
        r#"{"id":1,"method":"ping"}"#,
        r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#,
        r#"{"jsonrpc":2.0,"id":1,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0 ","id":1,"method":"ping"}"#,
        r#"{"jsonrpc":"2\u002e0","id":1,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":1}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":null}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":["ping"]}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","error":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"result":{},"params":{}}"#,
        r#"{"jsonrpc":"2.0","result":{}}"#,
        r#"{"jsonrpc":"2.0","id":null,"result":{}}"#,
        r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"a"}}"#,
        r#"{"jsonrpc":"2.0","method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"notifications/initialized"}"#,
        r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":1.0,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":1e2,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":-0,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":9007199254740992,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":123456789012345678901234567890,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":true,"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":[1],"method":"ping"}"#,
        r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#,
        r#"["tools/call",{"name":"echo"}]"#,
    ]);
    bodies.push(ping_with_id(&format!("\"{}\"", "x".repeat(300))));
    bodies
}

/// T3: `params` that are not an object.
pub fn shapeless_params() -> Vec<String> {
    let params = [
        "null",
        "[]",
        r#"["echo",{}]"#,
        r#""x""#,
        "1",
        r#"{}"#,
        r#"{"name":null}"#,
        r#"{"name":["echo"]}"#,
        r#"{"name":1}"#,
        r#"{"name":"a","arguments":[]}"#,
        r#"{"name":"a","arguments":null}"#,
        r#"{"name":"a","arguments":"{}"}"#,
        r#"{"name":"a","_meta":[]}"#,
        r#"{"name":"a","_meta":null}"#,
        r#"{"name":"a","inputResponses":[]}"#,
        r#"{"name":"a","requestState":{}}"#,
        r#"{"name":"a","task":true}"#,
        r#"{"name":"a","_meta":{"io.modelcontextprotocol/protocolVersion":20260728}}"#,
        r#"{"name":"a","_meta":{"io.modelcontextprotocol/clientCapabilities":[]}}"#,
    ];
    params.map(call_with).into()
}

/// T4: not UTF-8, or not only.
pub fn no_text() -> Vec<Vec<u8>> {
    let ping = ping_with_id("1");
    let utf16 = |bytes: fn(u16) -> [u8; 2]| ping.encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
    let utf32 = |bytes: fn(u32) -> [u8; 4]| ping.chars().flat_map(|char| bytes(u32::from(char))).collect::<Vec<u8>>();
    let marked = |mark: &[u8], text: Vec<u8>| [mark, &text].concat();
    let quoted = |bytes: &[u8]| [br#"{"jsonrpc":"2.0","id":1,"method":"ping"#, bytes, br#""}"#].concat();
    let mut bodies = vec![
        utf16(u16::to_le_bytes),
        utf16(u16::to_be_bytes),
        utf32(u32::to_le_bytes),
        utf32(u32::to_be_bytes),
        marked(b"\xff\xfe", utf16(u16::to_le_bytes)),
        marked(b"\xfe\xff", utf16(u16::to_be_bytes)),
        marked(b"\xef\xbb\xbf", ping.clone().into()),
        b"+AHsAIg-".to_vec(),
    ];
    for bytes in [
        &b"\xff"[..],
        b"\x80",
        b"\xc0\xaf",
        b"\xc1\xbf",
        b"\xe0\x80\xaf",
        b"\xf0\x80\x80\xaf",
        b"\xed\xa0\x80",
        b"\xed\xa0\xbd\xed\xb8\x80",
        b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xc3",
        b"\xe2\x82",
        b"\0",
        b"\x1f",
        b"\n",
        br"\ud800",
        br"\udc00",
        br"\ud800x",
        br"\ud800\u0041",
        br"\udc00\ud800",
        br"\u12",
        br"\uzzzz",
        br"\x41",
    ] {
        bodies.push(quoted(bytes));
    }
    bodies
}

/// T5: something behind the message or in it that is not JSON.
pub fn no_json() -> Vec<String> {
    let ping = ping_with_id("1");
    let mut bodies: Vec<String> = [
        "{}", "\n{}", ",", "]", "}", "\0", "x", "//", "/**/", "#", "\u{feff}", "\u{a0}", &ping,
    ]
    .map(|tail| format!("{ping}{tail}"))
    .into();
    bodies.push(format!("{ping}\n{ping}\n"));
    bodies.push(format!("\u{1e}{ping}\n"));
    bodies.push(format!(")]}}'\n{ping}"));
    for value in [
        "NaN",
        "-NaN",
        "Infinity",
        "-Infinity",
        "undefined",
        "True",
        "nul",
        "0x10",
        "0b1",
        "0o7",
        "01",
        "-01",
        "00",
        "+1",
        ".5",
        "1.",
        "-",
        "1e",
        "1e+",
        "1_000",
        "1,",
        "1 // one",
        "/* one */ 1",
        "'a'",
        "`a`",
        "{a:1}",
        "{'a':1}",
        "{\"a\" 1}",
        "{\"a\":1,}",
        "{,\"a\":1}",
        "[1,]",
        "[1 2]",
        "[,1]",
        "\"a\nb\"",
        "\"a\tb\"",
        "\"a",
        "1\u{a0}",
        "1\u{b}",
        "1\u{c}",
    ] {
        bodies.push(call(&format!(r#"{{"text":{value}}}"#)));
    }
    bodies
}

/// T6: bodies beyond each of the reader's bounds.
pub fn heavy() -> Vec<(&'static str, String)> {
    let deep = |levels: usize| call(&format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels)));
    let digits = |number: String| call(&format!(r#"{{"text":{number}}}"#));
    vec![
        ("a level too deep", deep(63)),
        ("twelve thousand levels", deep(12_000)),
        (
            "twelve thousand levels that are not closed",
            call(&format!(r#"{{"a":{}"#, "[".repeat(12_000))),
        ),
        ("thirty thousand objects that are not closed", r#"{"a":"#.repeat(30_000)),
        (
            "thirty thousand brackets behind a member",
            format!(r#"{{"jsonrpc":{}"#, "[".repeat(30_000)),
        ),
        ("too many members", call(&wide(10_001, |index| format!("k{index}")))),
        ("five thousand digits", digits("1".repeat(5_000))),
        (
            "five thousand digits behind the point",
            digits(format!("0.{}", "1".repeat(5_000))),
        ),
        (
            "five thousand digits of an exponent",
            digits(format!("1e{}", "1".repeat(5_000))),
        ),
    ]
}

/// An object with nearly as many members as a message may have.
pub fn wide(count: usize, name: fn(usize) -> String) -> String {
    let members: Vec<String> = (0..count).map(|index| format!(r#""{}":1"#, name(index))).collect();
    format!("{{{}}}", members.join(","))
}

/// T7: batches of any size.
pub fn batches() -> Vec<String> {
    let call = call(r#"{"text":"hi"}"#);
    let mut bodies = owned(["[]", "[1]", "[[]]", "[null]", "[{}]"]);
    bodies.extend([
        format!("[{call}]"),
        format!(" \n[{call},{call}]"),
        format!("[[{call}]]"),
        format!("[{}]", vec![call.as_str(); 1_000].join(",")),
        format!(r#"[{{"jsonrpc":"2.0","method":"notifications/initialized"}},{call}]"#),
        "[".repeat(30_000),
    ]);
    bodies
}

/// T8: spellings of names other than `echo`, each with the name it means once unescaped.
pub fn other_names() -> Vec<(String, String)> {
    let mut names: Vec<(String, String)> = [
        "Echo",
        "ECHO",
        " echo",
        "echo ",
        "ec ho",
        "e%63ho",
        "e\u{301}cho",
        "ｅcho",
        "еcho",
        "echo\u{200b}",
        "\u{feff}echo",
        "echo\u{a0}",
        "a/b",
        "files/echo",
        "files.echo",
        "files__echo",
        "../echo",
        "echo;",
        "echo\u{202e}",
        "",
    ]
    .map(|name| (name.to_owned(), name.to_owned()))
    .into();
    names.push((r"echo\n".into(), "echo\n".into()));
    names.push((r"echo\u0020".into(), "echo ".into()));
    names.push((r"\u0045cho".into(), "Echo".into()));
    names.push(("x".repeat(129), "x".repeat(129)));
    names
}
