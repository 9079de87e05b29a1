//! Amounts of memory and shares of it, as settings.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Error, Result, parse_bytes};

/// How much memory a worker may use.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum MemoryLimit {
    /// Its part of what its process may use.
    #[default]
    Auto,
    /// This many bytes.
    Bytes(u64),
    /// This share of the node's memory, from 0 to 1.
    Share(f64),
    /// As much as there is: nothing is ever spilled.
    None,
}

impl FromStr for MemoryLimit {
    type Err = Error;

    /// Reads `auto`, `none`, `0`, bytes (`4GiB`), or a share with a point in it (`0.5`, `1.0`).
    fn from_str(text: &str) -> Result<Self> {
        match text.trim() {
            "auto" => Ok(Self::Auto),
            "none" | "0" => Ok(Self::None),
            share if share.contains('.') && share.parse::<f64>().is_ok_and(|share| share <= 1.0) => {
                Self::share(share.parse().unwrap_or(0.0))
            }
            bytes => parse_bytes(bytes).map(Self::bytes),
        }
    }
}

impl MemoryLimit {
    fn share(share: f64) -> Result<Self> {
        match share {
            0.0 => Ok(Self::None),
            _ if share > 0.0 && share <= 1.0 => Ok(Self::Share(share)),
            _ => Err(Error::Usage(format!(
                "{share} is no amount of bytes and no share of the memory; write it like 4GiB, or from 0 to 1"
            ))),
        }
    }

    fn bytes(bytes: u64) -> Self {
        if bytes == 0 { Self::None } else { Self::Bytes(bytes) }
    }
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Bytes(bytes) => write!(f, "{bytes}"),
            // With its point, by which it is known for a share.
            Self::Share(share) => write!(f, "{share:?}"),
            Self::None => f.write_str("none"),
        }
    }
}

impl Serialize for MemoryLimit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MemoryLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = MemoryLimit;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount of bytes, a share of the memory, auto or none")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<MemoryLimit, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<MemoryLimit, E> {
                Ok(MemoryLimit::bytes(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<MemoryLimit, E> {
                let wrong = |_| E::custom(format!("{bytes} is no amount of bytes"));
                u64::try_from(bytes).map(MemoryLimit::bytes).map_err(wrong)
            }

            fn visit_f64<E: de::Error>(self, share: f64) -> Result<MemoryLimit, E> {
                MemoryLimit::share(share).map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// A share of a worker's memory at which something happens; `None` where it never does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold(pub Option<f64>);

impl Serialize for Threshold {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(share) => serializer.serialize_f64(share),
            None => serializer.serialize_str("off"),
        }
    }
}

impl<'de> Deserialize<'de> for Threshold {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Threshold;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a share from 0 to 1, or off")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Threshold, E> {
                if text == "off" {
                    return Ok(Threshold(None));
                }
                Err(E::custom(format!("`{text}` is no share: say a number above 0 and up to 1, or off")))
            }

            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Threshold, E> {
                if on { Err(E::custom("say which share")) } else { Ok(Threshold(None)) }
            }

            fn visit_u64<E: de::Error>(self, share: u64) -> Result<Threshold, E> {
                self.visit_f64(share as f64)
            }

            fn visit_i64<E: de::Error>(self, share: i64) -> Result<Threshold, E> {
                self.visit_f64(share as f64)
            }

            fn visit_f64<E: de::Error>(self, share: f64) -> Result<Threshold, E> {
                if share > 0.0 && share <= 1.0 {
                    return Ok(Threshold(Some(share)));
                }
                Err(E::custom(format!("{share} is no share: say a number above 0 and up to 1, or off")))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_people_write_them() {
        let read = |text: &str| text.parse::<MemoryLimit>();
        assert_eq!(read("4GiB").unwrap(), MemoryLimit::Bytes(4 << 30));
        assert_eq!(read("500 MB").unwrap(), MemoryLimit::Bytes(500_000_000));
        assert_eq!(read("1").unwrap(), MemoryLimit::Bytes(1));
        assert_eq!(read("1.5GiB").unwrap(), MemoryLimit::Bytes(3 << 29));
        assert_eq!(read("0.5").unwrap(), MemoryLimit::Share(0.5));
        assert_eq!(read("1.0").unwrap(), MemoryLimit::Share(1.0));
        for none in ["0", "none", "0.0", "0B"] {
            assert_eq!(read(none).unwrap(), MemoryLimit::None, "{none}");
        }
        assert_eq!(read("auto").unwrap(), MemoryLimit::Auto);
        for wrong in ["much", "-1", "-0.5", "4 gibberish", ""] {
            assert!(read(wrong).unwrap_err().to_string().contains("no amount of bytes"), "{wrong}");
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        for limit in
            [MemoryLimit::Auto, MemoryLimit::None, MemoryLimit::Bytes(7 << 30), MemoryLimit::Share(1.0)]
        {
            assert_eq!(limit.to_string().parse::<MemoryLimit>().unwrap(), limit);
        }
    }
}
