//! The place in an address: `<world>/<rank>:<port>`, such as `mpi://5f3a09c2e81d7b46/2:1`.
//!
//! The world is 64 random bits that its rank 0 drew, in hexadecimal: an address of another job is told from
//! one of this. Ports are numbers that a rank gives to its listeners.

use std::{fmt, str::FromStr};

/// Where a listener is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) world: u64,
    pub(crate) rank: i32,
    pub(crate) port: u32,
}

/// What a listener is asked to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// `*`: any port of this rank.
    Any,
    /// `*:PORT`: this port of this rank, whichever the world.
    Port(u32),
    /// The whole place, as it stands in the address of a listener.
    Place(Place),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}/{}:{}", self.world, self.rank, self.port)
    }
}

impl FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "a place of mpi:// is written WORLD/RANK:PORT, as its listener tells it";
        let (world, rest) = text.split_once('/').ok_or(wrong)?;
        let (rank, port) = rest.split_once(':').ok_or(wrong)?;
        Ok(Self {
            world: u64::from_str_radix(world, 16).map_err(|_| wrong)?,
            rank: rank.parse().ok().filter(|rank| *rank >= 0).ok_or(wrong)?,
            port: port.parse().map_err(|_| wrong)?,
        })
    }
}

impl FromStr for Wanted {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix('*') {
            Some("") => Ok(Self::Any),
            Some(port) => {
                let port = port.strip_prefix(':').and_then(|port| port.parse().ok());
                port.map(Self::Port).ok_or("to choose a port, write *:PORT")
            }
            None => text.parse().map(Self::Place),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_written() {
        let place = Place { world: 0x5f3a_09c2_e81d_7b46, rank: 2, port: 1 };
        assert_eq!(place.to_string(), "5f3a09c2e81d7b46/2:1");
        assert_eq!(place.to_string().parse(), Ok(place));
        assert_eq!("5f3a09c2e81d7b46/2:1".parse(), Ok(Wanted::Place(place)));
        assert_eq!(("*".parse(), "*:7".parse()), (Ok(Wanted::Any), Ok(Wanted::Port(7))));
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for text in
            ["", "x", "1/2", "1/-2:3", "1/2:x", "g/2:3", "1/2:4294967296", "1/99999999999:3", "127.0.0.1:80"]
        {
            assert!(text.parse::<Place>().is_err() && text.parse::<Wanted>().is_err(), "{text}");
        }
        for text in ["*1", "*:", "*:x"] {
            assert!(text.parse::<Wanted>().is_err(), "{text}");
        }
    }
}
