//! Numbers of bytes as Kubernetes writes quantities: `500k` is 500,000, `50Mi` is 50 times 1024 times 1024.

use std::num::NonZeroU64;

/// Units of Kubernetes' quantities, as far as bandwidths and volumes need them.
const UNITS: [(&str, u64); 6] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
];

/// The same digits as in the CRD's rule: no sign, no leading zero, none too many.
const MOST_DIGITS: usize = 12;

/// Reads a quantity of bytes; nothing if it is none, or zero.
pub fn parse_quantity(text: &str) -> Option<NonZeroU64> {
    let (digits, unit) = UNITS
        .iter()
        .find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)))
        .unwrap_or((text, 1));
    let is_number = !digits.is_empty()
        && digits.len() <= MOST_DIGITS
        && !digits.starts_with('0')
        && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = is_number.then(|| digits.parse().ok()).flatten()?;
    NonZeroU64::new(number.saturating_mul(unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantity_has_the_units_of_kubernetes() {
        for (text, expected) in [
            ("1", Some(1)),
            ("500k", Some(500_000)),
            ("500Ki", Some(512_000)),
            ("50Mi", Some(50 << 20)),
            ("50M", Some(50_000_000)),
            ("1Gi", Some(1 << 30)),
            ("999999999999Gi", Some(u64::MAX)),
            ("0", None),
            ("0Mi", None),
            ("", None),
            ("Mi", None),
            ("-1", None),
            ("+1", None),
            ("1.5Mi", None),
            ("1 Mi", None),
            ("50mi", None),
            ("1Ti", None),
            ("1234567890123", None),
        ] {
            assert_eq!(
                parse_quantity(text).map(NonZeroU64::get),
                expected,
                "{text}"
            );
        }
    }
}
