//! What a word without quotes means. kubectl reads YAML 1.1 with the grammar of Go's yaml.v2, where `Off`, `y` and `0o7` are
//! no strings (CRD findings F5 and F37), so the same is done here.

use super::node::Value;

/// The value of a plain scalar.
pub(super) fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "true" | "True" | "TRUE" => {
            Value::Bool(true)
        }
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "false" | "False" | "FALSE" => {
            Value::Bool(false)
        }
        _ => number(text).unwrap_or_else(|| Value::String(text.to_owned())),
    }
}

fn number(text: &str) -> Option<Value> {
    text.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '-' | '.'))
        .then_some(())?;
    let plain = text.replace('_', "");
    let value = integer(&plain).map(Value::Integer);
    value.or_else(|| float(&plain).map(rounded))
}

/// `8.0` and `1e3` become whole numbers on their way to the server.
#[expect(clippy::cast_possible_truncation, reason = "it is within the bounds")]
fn rounded(number: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() < EXACT {
        Value::Integer(number as i64)
    } else {
        Value::Float(number)
    }
}

/// Decimal, `0x`, `0o`, `0b`, and octal by a leading zero.
fn integer(text: &str) -> Option<i64> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => ("-", &text[1..]),
        b'+' => ("", &text[1..]),
        _ => ("", text),
    };
    let prefixed = |lower, upper| {
        digits
            .strip_prefix(lower)
            .or_else(|| digits.strip_prefix(upper))
    };
    let (radix, digits) = if let Some(rest) = prefixed("0x", "0X") {
        (16, rest)
    } else if let Some(rest) = prefixed("0o", "0O") {
        (8, rest)
    } else if let Some(rest) = prefixed("0b", "0B") {
        (2, rest)
    } else if digits.len() > 1 && digits.starts_with('0') {
        (8, digits)
    } else {
        (10, digits)
    };
    // The parser of numbers would take another sign here.
    digits
        .starts_with(|first: char| first.is_digit(radix))
        .then_some(())?;
    i64::from_str_radix(&format!("{sign}{digits}"), radix).ok()
}

fn float(text: &str) -> Option<f64> {
    match text {
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Some(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Some(f64::NEG_INFINITY),
        ".nan" | ".NaN" | ".NAN" => return Some(f64::NAN),
        _ => {}
    }
    // What else the parser takes, `inf` and `nan`, are words.
    let is_numeric = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
    text.bytes()
        .all(is_numeric)
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_what_kubectl_takes_them_for() {
        for (text, expected) in [
            ("", Value::Null),
            ("~", Value::Null),
            ("Off", Value::Bool(false)),
            ("N", Value::Bool(false)),
            ("y", Value::Bool(true)),
            ("On", Value::Bool(true)),
            ("4", Value::Integer(4)),
            ("-4", Value::Integer(-4)),
            ("1_000", Value::Integer(1000)),
            ("0x1F", Value::Integer(31)),
            ("0o17", Value::Integer(15)),
            ("017", Value::Integer(15)),
            ("0b11", Value::Integer(3)),
            ("1.10", Value::Float(1.1)),
            ("08", Value::Integer(8)),
            ("1e3", Value::Integer(1000)),
            (".5", Value::Float(0.5)),
            ("-.inf", Value::Float(f64::NEG_INFINITY)),
        ] {
            assert_eq!(resolve(text), expected, "{text}");
        }
        for text in [
            "1.2.3",
            "v1",
            "oFF",
            "yess",
            "1.27-alpine",
            "nan",
            "inf",
            "-",
            "+",
            ".",
            "--1",
            "0x",
            "1h",
            "2026-11-22",
            "12:30",
            "_1",
            "latest",
            "sha256:abc",
        ] {
            assert_eq!(resolve(text), Value::String(text.to_owned()), "{text}");
        }
    }
}
