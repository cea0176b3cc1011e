//! Sizes as people write them.

use anyhow::{Result, bail};

/// Bytes of `text`: a number, with an optional unit such as `MiB`, `GB` or `G`.
pub(super) fn bytes(text: &str) -> Result<usize> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1000 * 1000,
        "gb" => 1000 * 1000 * 1000,
        "tb" => 1000 * 1000 * 1000 * 1000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => bail!("{text:?} is no size; write 2GiB, 512MiB or a number of bytes"),
    };
    match number.parse::<f64>() {
        Ok(number) if number.is_finite() && number * factor as f64 <= (1u64 << 60) as f64 => {
            Ok((number * factor as f64) as usize)
        }
        _ => bail!("{text:?} is no size; write 2GiB, 512MiB or a number of bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (text, size) in [("7", 7), ("2GiB", 2 << 30), ("1.5k", 1536), ("3 MB", 3_000_000)] {
            assert_eq!(bytes(text).unwrap(), size);
        }
        for text in ["", "GiB", "-1", "2GBs", "1e400", "9999999TiB", "1.2.3"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
