//! Where a peer listens.

use std::{fmt, str::FromStr, sync::Arc};

use crate::Error;

/// A transport's scheme and a place it understands: `tcp://10.0.0.7:8786`, `inproc://scheduler`.
///
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    text: Arc<str>,
    scheme: usize,
}

impl Address {
    /// An address from its two parts.
    pub fn new(scheme: &str, place: impl fmt::Display) -> Self {
        Self { text: format!("{scheme}://{place}").into(), scheme: scheme.len() }
    }

    /// The part before `://`.
    pub fn scheme(&self) -> &str {
        &self.text[..self.scheme]
    }

    /// The part after `://`, which only the transport can read.
    pub fn place(&self) -> &str {
        &self.text[self.scheme + 3..]
    }

    /// The whole address.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(given: &str) -> Result<Self, Error> {
        let bad = |reason: &str| Error::Address { given: given.into(), reason: reason.into() };
        let (scheme, place) = given.split_once("://").ok_or_else(|| bad("it has no scheme"))?;
        if scheme.is_empty() || !scheme.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(bad("its scheme is not letters and digits"));
        }
        if place.is_empty() {
            return Err(bad("nothing follows the scheme"));
        }
        if given.len() > 1024 {
            return Err(bad("it is longer than 1024 bytes"));
        }
        Ok(Self { text: given.into(), scheme: scheme.len() })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
