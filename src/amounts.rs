//! Amounts of memory as people write and read them.

use std::fmt;

use crate::{Error, Result};

/// Shows bytes with one digit after the point, in the unit that suits.
pub(crate) struct Bytes(pub(crate) u64);

/// Reads an amount of bytes: `1500`, `10MB`, `1.5 GiB`, `64k`.
///
/// # Errors
/// If it is none.
///
/// ```
/// assert_eq!(rankine::parse_bytes("10 MB").unwrap(), 10_000_000);
/// assert_eq!(rankine::parse_bytes("1.5GiB").unwrap(), 3 << 29);
/// assert!(rankine::parse_bytes("much").is_err());
/// ```
pub fn parse_bytes(text: &str) -> Result<u64> {
    let wrong = || Error::Usage(format!("`{text}` is no amount of bytes; write it like 500MB or 2GiB"));
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "ki" | "kib" => 1024.0,
        "mi" | "mib" => 1024.0 * 1024.0,
        "gi" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "ti" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return Err(wrong()),
    };
    let bytes = number * factor;
    if bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(wrong()) }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        match self.0 {
            0..1024 => write!(f, "{} B", self.0),
            1024..0x10_0000 => write!(f, "{:.1} KiB", bytes / 1024.0),
            0x10_0000..0x4000_0000 => write!(f, "{:.1} MiB", bytes / 1024.0 / 1024.0),
            _ => write!(f, "{:.1} GiB", bytes / 1024.0 / 1024.0 / 1024.0),
        }
    }
}
