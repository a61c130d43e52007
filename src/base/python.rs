//! How Python writes values: `json.dumps`, `repr`, `str`, and how it reads literals back.
//!
//! lm-eval hashes `json.dumps` texts and passes lists through templates as their `repr`, so prompts and hashes are
//! only the same as its own where this is exact. Sources: CPython 3.11 `json/encoder.py`, `Objects/unicodeobject.c`
//! (`unicode_repr`), `Python/pystrtod.c` (`float_repr_style`).

use std::fmt::Write;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Number, Value};

/// `json.dumps(value, indent=indent, ensure_ascii=False)`.
pub fn json_dumps(value: &Value, indent: Option<usize>) -> String {
    let mut out = String::new();
    write_json(&mut out, value, indent, 0);
    out
}

fn write_json(out: &mut String, value: &Value, indent: Option<usize>, depth: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => out.push_str(&number(n)),
        Value::String(s) => write_json_string(out, s),
        Value::Array(list) => {
            let items = list.iter().map(|v| (None, v));
            write_container(out, ('[', ']'), items, indent, depth);
        }
        Value::Object(map) => {
            let items = map.iter().map(|(k, v)| (Some(k.as_str()), v));
            write_container(out, ('{', '}'), items, indent, depth);
        }
    }
}

fn write_container<'a>(
    out: &mut String,
    (open, close): (char, char),
    items: impl ExactSizeIterator<Item = (Option<&'a str>, &'a Value)>,
    indent: Option<usize>,
    depth: usize,
) {
    out.push(open);
    let empty = items.len() == 0;
    for (i, (key, value)) in items.enumerate() {
        if i > 0 {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        new_line(out, indent, depth + 1);
        if let Some(key) = key {
            write_json_string(out, key);
            out.push_str(": ");
        }
        write_json(out, value, indent, depth + 1);
    }
    if !empty {
        new_line(out, indent, depth);
    }
    out.push(close);
}

fn new_line(out: &mut String, indent: Option<usize>, depth: usize) {
    if let Some(width) = indent {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', width * depth));
    }
}

/// The escapes of `json.encoder.ESCAPE_DCT`; everything else stays as it is.
fn write_json_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{c}' => out.push_str("\\f"),
            '\u{8}' => out.push_str("\\b"),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn number(n: &Number) -> String {
    match n.as_f64() {
        Some(f) if n.is_f64() => float_repr(f),
        _ => n.to_string(),
    }
}

/// `repr(float)`: the shortest digits that read back the same, in scientific form below 1e-4 and from 1e16 on.
pub fn float_repr(f: f64) -> String {
    if !f.is_finite() {
        return if f.is_nan() {
            "nan"
        } else if f > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .to_owned();
    }
    let scientific = format!("{f:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let text = f.to_string();
        return if text.contains('.') { text } else { text + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

/// `str(value)`: texts as they are, everything else as [`repr`].
pub fn str(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        other => repr(other),
    }
}

/// `repr(value)`.
pub fn repr(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(n) => number(n),
        Value::String(s) => str_repr(s),
        Value::Array(list) => format!("[{}]", list.iter().map(repr).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let items: Vec<_> = map.iter().map(|(k, v)| format!("{}: {}", str_repr(k), repr(v))).collect();
            format!("{{{}}}", items.join(", "))
        }
    }
}

/// What `str.isprintable` refuses: categories Other and Separator, except the space.
static NOT_PRINTABLE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"[\p{C}\p{Z}&&[^ ]]").expect("a constant pattern"));

/// `repr(str)`: single quotes unless the text has those and no double ones; non-printable characters escaped.
pub fn str_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let all_printable = !NOT_PRINTABLE.is_match(text);
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    let mut buffer = [0; 4];
    for c in text.chars() {
        let code = c as u32;
        let _ = match c {
            '\\' => write!(out, "\\\\"),
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            c if c == quote => write!(out, "\\{c}"),
            c if all_printable || !NOT_PRINTABLE.is_match(c.encode_utf8(&mut buffer)) => write!(out, "{c}"),
            _ if code < 0x100 => write!(out, "\\x{code:02x}"),
            _ if code < 0x10000 => write!(out, "\\u{code:04x}"),
            _ => write!(out, "\\U{code:08x}"),
        };
    }
    out.push(quote);
    out
}

/// `str.isspace` of one character: Unicode white space and the four ASCII separators.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.rstrip()`.
pub fn rstrip(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// `len(re.split(r"\s+", text))`: lm-eval's word count; white space at an end counts an empty word there.
pub fn split_count(text: &str) -> usize {
    let mut runs = 0;
    let mut in_space = false;
    for c in text.chars() {
        let space = is_space(c);
        runs += usize::from(space && !in_space);
        in_space = space;
    }
    runs + 1
}

/// A text that is not a Python literal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a Python literal at character {position}: {detail}")]
pub struct LiteralError {
    /// Offset in characters.
    pub position: usize,
    /// What is wrong there.
    pub detail: &'static str,
}

/// `ast.literal_eval` of lists, tuples, dicts with text keys, texts, numbers, `True`, `False` and `None`.
pub fn literal_eval(text: &str) -> Result<Value, LiteralError> {
    let chars: Vec<char> = text.trim_matches([' ', '\t']).chars().collect();
    let mut parser = Literal { chars: &chars, position: 0, depth: 0 };
    let value = parser.value()?;
    parser.skip_space();
    if parser.position < chars.len() {
        return Err(parser.error("something follows the value"));
    }
    Ok(value)
}

struct Literal<'a> {
    chars: &'a [char],
    position: usize,
    depth: usize,
}

/// Nesting beyond this is refused instead of overflowing the stack.
const MAX_DEPTH: usize = 64;

impl Literal<'_> {
    fn error(&self, detail: &'static str) -> LiteralError {
        LiteralError { position: self.position, detail }
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.position).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek();
        self.position += usize::from(c.is_some());
        c
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(|c| matches!(c, ' ' | '\t' | '\n' | '\r')) {
            self.position += 1;
        }
    }

    fn value(&mut self) -> Result<Value, LiteralError> {
        self.skip_space();
        match self.peek().ok_or_else(|| self.error("the text ends"))? {
            '[' => self.sequence(']'),
            '(' => self.sequence(')'),
            '{' => self.dict(),
            '\'' | '"' => self.string().map(Value::String),
            c if c.is_ascii_digit() || matches!(c, '-' | '+' | '.') => self.number(),
            _ => self.word(),
        }
    }

    fn enter(&mut self) -> Result<(), LiteralError> {
        self.position += 1;
        self.depth += 1;
        if self.depth > MAX_DEPTH { Err(self.error("nested too deeply")) } else { Ok(()) }
    }

    fn sequence(&mut self, close: char) -> Result<Value, LiteralError> {
        self.enter()?;
        let mut items = Vec::new();
        let mut comma = false;
        loop {
            self.skip_space();
            if self.peek() == Some(close) {
                break;
            }
            if !items.is_empty() && !comma {
                return Err(self.error("expected a comma"));
            }
            items.push(self.value()?);
            self.skip_space();
            comma = self.peek() == Some(',');
            self.position += usize::from(comma);
        }
        self.position += 1;
        self.depth -= 1;
        // Parentheses around one value without a comma only group it.
        if close == ')' && items.len() == 1 && !comma {
            return Ok(items.remove(0));
        }
        Ok(Value::Array(items))
    }

    fn dict(&mut self) -> Result<Value, LiteralError> {
        self.enter()?;
        let mut map = Map::new();
        loop {
            self.skip_space();
            if self.peek() == Some('}') {
                break;
            }
            let key = str(&self.value()?);
            self.skip_space();
            if self.next() != Some(':') {
                return Err(self.error("expected a colon"));
            }
            map.insert(key, self.value()?);
            self.skip_space();
            match self.peek() {
                Some(',') => self.position += 1,
                Some('}') => {}
                _ => return Err(self.error("expected a comma or the end of the dict")),
            }
        }
        self.position += 1;
        self.depth -= 1;
        Ok(Value::Object(map))
    }

    fn string(&mut self) -> Result<String, LiteralError> {
        let quote = self.next();
        let mut out = String::new();
        loop {
            match self.next().ok_or_else(|| self.error("the text ends inside a string"))? {
                c if Some(c) == quote => return Ok(out),
                '\n' => return Err(self.error("a line break inside a string")),
                '\\' => self.escape(&mut out)?,
                c => out.push(c),
            }
        }
    }

    fn escape(&mut self, out: &mut String) -> Result<(), LiteralError> {
        let c = match self.next().ok_or_else(|| self.error("the text ends after a backslash"))? {
            '\n' => return Ok(()),
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'v' => '\u{b}',
            '0' => '\0',
            'x' => self.code(2)?,
            'u' => self.code(4)?,
            'U' => self.code(8)?,
            c @ ('\\' | '\'' | '"') => c,
            // Python keeps an unknown escape as it is.
            c => {
                out.push('\\');
                c
            }
        };
        out.push(c);
        Ok(())
    }

    fn code(&mut self, digits: usize) -> Result<char, LiteralError> {
        let mut code = 0;
        for _ in 0..digits {
            let digit = self.next().and_then(|c| c.to_digit(16));
            code = code * 16 + digit.ok_or_else(|| self.error("expected a hexadecimal digit"))?;
        }
        char::from_u32(code).ok_or_else(|| self.error("not a Unicode character"))
    }

    fn number(&mut self) -> Result<Value, LiteralError> {
        let start = self.position;
        while self.peek().is_some_and(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.' | '_')) {
            self.position += 1;
        }
        let text: String = self.chars[start..self.position].iter().filter(|c| **c != '_').collect();
        let digits = text.trim_start_matches(['-', '+']);
        let leading_zero =
            digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
        if leading_zero && digits.bytes().any(|b| b != b'0') {
            return Err(self.error("leading zeros are not allowed"));
        }
        if let Ok(n) = text.trim_start_matches('+').parse::<i64>() {
            return Ok(n.into());
        }
        text.parse::<f64>()
            .ok()
            .and_then(Number::from_f64)
            .map(Value::Number)
            .ok_or_else(|| self.error("not a number"))
    }

    fn word(&mut self) -> Result<Value, LiteralError> {
        let start = self.position;
        while self.peek().is_some_and(char::is_alphanumeric) {
            self.position += 1;
        }
        match self.chars[start..self.position].iter().collect::<String>().as_str() {
            "None" => Ok(Value::Null),
            "True" => Ok(true.into()),
            "False" => Ok(false.into()),
            _ => Err(LiteralError { position: start, detail: "expected a value" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Reference: CPython 3.11, `repr(x)` of each.
    #[test]
    fn repr_as_cpython() {
        assert_eq!(
            repr(&json!(["it's", "say \"x\"", "both ' and \""])),
            r#"["it's", 'say "x"', 'both \' and "']"#
        );
        assert_eq!(
            repr(&json!([null, true, 1, 2.5, 1e22, 1e-5, 1e16, 123456789012345680.0])),
            "[None, True, 1, 2.5, 1e+22, 1e-05, 1e+16, 1.2345678901234568e+17]"
        );
        assert_eq!(repr(&json!({"a": [], "b": {}})), "{'a': [], 'b': {}}");
        assert_eq!(
            str_repr("tab\t nl\n \u{a0}\u{200b}\u{ad}é你😀\u{1f}\u{e000}\u{10ffff}"),
            r"'tab\t nl\n \xa0\u200b\xadé你😀\x1f\ue000\U0010ffff'"
        );
    }

    /// Reference: CPython 3.11, `json.dumps(x, indent=2, ensure_ascii=False)`.
    #[test]
    fn json_as_cpython() {
        let value =
            json!({"q": "a\"\\\n\u{1}\u{7f}\u{2028}é", "c": [], "d": {}, "n": [1, -2.0, null, false]});
        assert_eq!(
            json_dumps(&value, Some(2)),
            "{\n  \"q\": \"a\\\"\\\\\\n\\u0001\u{7f}\u{2028}é\",\n  \"c\": [],\n  \"d\": {},\n  \"n\": [\n    1,\n    -2.0,\n    null,\n    false\n  ]\n}"
        );
        assert_eq!(json_dumps(&json!({"a": [1, "b"]}), None), r#"{"a": [1, "b"]}"#);
    }

    #[test]
    fn literals() {
        assert_eq!(
            literal_eval("['a', \"b's\", 1, -2.5, None, True, ('x',), (3)]").unwrap(),
            json!(["a", "b's", 1, -2.5, null, true, ["x"], 3])
        );
        assert_eq!(literal_eval(r"['\x41\u00e9\U0001F600\n\q']").unwrap(), json!(["Aé😀\n\\q"]));
        assert_eq!(literal_eval("{'a': [1,], }").unwrap(), json!({"a": [1]}));
        for bad in
            ["", "[", "['a'", "[1 2]", "['a\n']", "abc", "[1] 2", "'\\ud800'", "007", "{1}", "\\", "[,]"]
        {
            assert!(literal_eval(bad).is_err(), "{bad:?}");
        }
        assert!(literal_eval(&"[".repeat(10_000)).is_err());
    }

    #[test]
    fn white_space() {
        assert_eq!(rstrip("a \u{1f}\u{a0}\n"), "a");
        assert_eq!(split_count("a  b\nc"), 3);
        assert_eq!(split_count(" a "), 3);
        assert_eq!(split_count(""), 1);
    }

    proptest! {
        #[test]
        fn repr_reads_back(texts in proptest::collection::vec(any::<String>(), 0..4)) {
            let value = json!(texts);
            prop_assert_eq!(literal_eval(&repr(&value)).unwrap(), value);
        }

        #[test]
        fn literal_eval_never_panics(text in any::<String>()) {
            let _ = literal_eval(&text);
        }

        #[test]
        fn floats_read_back(f in any::<f64>().prop_filter("finite", |f| f.is_finite())) {
            prop_assert_eq!(float_repr(f).parse::<f64>().unwrap(), f);
        }
    }
}
