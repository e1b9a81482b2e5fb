//! PAX records (POSIX pax, "Extended Header"), read strictly: what two readers could understand in two ways is refused
//! (archive reference rows 11 and 12).
//!
//! A record is `LENGTH SPACE KEY=VALUE NEWLINE`; the length, in decimal, counts the whole record, itself included. Values are
//! bytes and may hold newlines, so the length comes first.

/// A key with its value.
type Record<'a> = (&'a [u8], &'a [u8]);

/// Digits of the longest length that can be right: payloads have at most 1 MiB by default.
const MAX_LENGTH_DIGITS: usize = 19;

/// All records of a payload, which they use up exactly.
pub(super) fn records(payload: &[u8]) -> Result<Vec<Record<'_>>, &'static str> {
    let mut found = Vec::new();
    let mut rest = payload;
    while !rest.is_empty() {
        let (record, behind) = split_record(rest)?;
        found.push(record);
        rest = behind;
    }
    Ok(found)
}

fn split_record(bytes: &[u8]) -> Result<(Record<'_>, &[u8]), &'static str> {
    let digits = bytes
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let length = decimal(&bytes[..digits]).ok_or("its length is not a plain number")?;
    if bytes.get(digits) != Some(&b' ') {
        return Err("no space follows its length");
    }
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > bytes.len() {
        return Err("it is longer than its header");
    }
    let (record, rest) = bytes.split_at(length);
    let Some((b'\n', content)) = record.get(digits + 1..).and_then(<[u8]>::split_last) else {
        return Err("it does not end with a newline");
    };
    let equals = content
        .iter()
        .position(|byte| *byte == b'=')
        .filter(|position| *position > 0)
        .ok_or("it has no key and value")?;
    Ok(((&content[..equals], &content[equals + 1..]), rest))
}

/// A number of digits only, without sign and leading zeros, below 2^63.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    let plain = !digits.is_empty()
        && digits.len() <= MAX_LENGTH_DIGITS
        && digits.iter().all(u8::is_ascii_digit)
        && (digits[0] != b'0' || digits.len() == 1);
    if !plain {
        return None;
    }
    let value: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    i64::try_from(value).is_ok().then_some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::archive::testing::pax_record;

    #[test]
    fn records_are_taken_apart_by_their_lengths() {
        let payload = [
            &b"12 path=a/b\n"[..],
            b"27 SCHILY.xattr.user.x=a\nb\n",
            b"6 k==\n",
        ]
        .concat();
        assert_eq!(
            records(&payload).unwrap(),
            [
                (&b"path"[..], &b"a/b"[..]),
                (b"SCHILY.xattr.user.x", b"a\nb"),
                (b"k", b"="),
            ]
        );
        assert!(records(b"").unwrap().is_empty());
    }

    /// Row 11.
    #[test]
    fn a_record_that_is_not_exact_is_refused() {
        for payload in [
            "x",
            "\n",
            "+12 path=a/b\n",
            "-1 path=a/b\n",
            "012 path=a/b\n",
            "0 path=a/b\n",
            "11 path=a/b\n",
            "13 path=a/b\n",
            "12 path=a/b",
            "12 path=a/bx",
            "12\tpath=a/b\n",
            "12path=a/b\n",
            "8 =value\n",
            "8 patha\n",
            "12 path=a/b\n\n",
            "12 path=a/b\nrest",
            "12 path=a/b\n\0\0",
            "3 \n",
            "2\n",
            "99999999999999999999 a=b\n",
        ] {
            assert!(records(payload.as_bytes()).is_err(), "{payload:?}");
        }
    }

    #[test]
    fn numbers_have_no_sign_no_zero_in_front_and_fit_a_file_size() {
        assert_eq!(decimal(b"0"), Some(0));
        assert_eq!(decimal(b"9223372036854775807"), Some(i64::MAX as u64));
        for digits in [
            "",
            "+1",
            "-1",
            "01",
            "00",
            "1 ",
            " 1",
            "9223372036854775808",
            "0x1",
        ] {
            assert_eq!(decimal(digits.as_bytes()), None, "{digits:?}");
        }
    }

    proptest! {
        #[test]
        fn any_records_are_found_as_they_were_written(
            wanted in proptest::collection::vec(("[a-zA-Z.]{1,20}", proptest::collection::vec(any::<u8>(), 0..300)), 0..6),
        ) {
            let payload: Vec<u8> = wanted.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
            let found = records(&payload).unwrap();
            prop_assert_eq!(found.len(), wanted.len());
            for ((key, value), (wanted_key, wanted_value)) in found.into_iter().zip(&wanted) {
                prop_assert_eq!(key, wanted_key.as_bytes());
                prop_assert_eq!(value, &wanted_value[..]);
            }
        }

        #[test]
        fn any_bytes_are_records_that_use_them_up_or_an_error(payload in "([0-9]{1,3}[ =a\n+]{0,5}){0,6}") {
            if let Ok(found) = records(payload.as_bytes()) {
                let again: Vec<u8> = found
                    .iter()
                    .flat_map(|(key, value)| pax_record(std::str::from_utf8(key).unwrap(), value))
                    .collect();
                prop_assert_eq!(again, payload.as_bytes());
            }
        }
    }
}
