//! Sizes as people write and read them.

/// Bytes from `4096`, `4k`, `64M`, `1GiB`: units are powers of 1024, in either case, with or without `B` or `iB`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let explain =
        || format!("{text:?} is not a size: give bytes, or a number and a unit, like 4096, 4k, 64M, 1G");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| explain())?;
    let unit = unit.trim_start().to_ascii_lowercase();
    let shift = match unit.trim_end_matches("ib").trim_end_matches('b') {
        "" if unit != "ib" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(explain()),
    };
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is too large: at most 16777215T"))
}

/// `64 MiB`, `1.5 GiB`, `100 bytes`.
pub(crate) fn show_size(bytes: u64) -> String {
    let (unit, shift) = match bytes {
        0..1024 => return format!("{bytes} bytes"),
        1024..0x10_0000 => ("KiB", 10),
        0x10_0000..0x4000_0000 => ("MiB", 20),
        0x4000_0000..0x100_0000_0000 => ("GiB", 30),
        _ => ("TiB", 40),
    };
    let (whole, rest) = (bytes >> shift, bytes & ((1 << shift) - 1));
    if rest == 0 {
        return format!("{whole} {unit}");
    }
    // Cut, not rounded: 1023.99 KiB must not become 1024 KiB. The rest is below 2^40.
    format!("{whole}.{:02} {unit}", (rest * 100) >> shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_and_without_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4k", 4096),
            ("4K", 4096),
            ("64M", 64 << 20),
            ("64 MiB", 64 << 20),
            ("1g", 1 << 30),
            ("2TB", 2 << 40),
            ("100b", 100),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_named() {
        for text in ["", "k", "-1", "1.5G", "4kk", "4x", "4ib", "99999999999999999999", "16777216T", "0x10"] {
            let error = parse_size(text).unwrap_err();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }

    #[test]
    fn sizes_are_shown_short_and_never_too_large() {
        assert_eq!(show_size(100), "100 bytes");
        assert_eq!(show_size(4096), "4 KiB");
        assert_eq!(show_size((1 << 20) - 1), "1023.99 KiB");
        assert_eq!(show_size(3 << 29), "1.50 GiB");
        assert_eq!(show_size(u64::MAX), "16777215.99 TiB");
    }
}
