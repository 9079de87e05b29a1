//! How many tasks a worker is given ahead of time, as a setting.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Tasks without dependencies that a worker is given ahead of time, in multiples of its threads: above 0, infinite
/// where none is to wait at the scheduler. 1.1, as in Dask, keeps threads busy while the scheduler hears of what is
/// done, and results few.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Saturation(f64);

/// As it is written: JSON and the environment have no infinite numbers.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Number(f64),
    Text(String),
}

impl Default for Saturation {
    fn default() -> Self {
        Self(1.1)
    }
}

impl Saturation {
    /// # Errors
    /// If it is not above 0.
    pub fn new(times: f64) -> Result<Self> {
        if times > 0.0 { Ok(Self(times)) } else { Err(wrong(&times)) }
    }

    /// How often a worker's threads.
    #[must_use]
    pub fn times(self) -> f64 {
        self.0
    }
}

fn wrong(given: &dyn std::fmt::Display) -> Error {
    Error::Usage(format!("worker-saturation cannot be {given}: say a number above 0, or inf"))
}

impl TryFrom<Written> for Saturation {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self> {
        match written {
            Written::Number(times) => Self::new(times),
            Written::Text(text) if text == "inf" => Ok(Self(f64::INFINITY)),
            Written::Text(text) => Err(wrong(&text)),
        }
    }
}

impl From<Saturation> for Written {
    fn from(Saturation(times): Saturation) -> Self {
        if times.is_finite() { Self::Number(times) } else { Self::Text("inf".into()) }
    }
}
