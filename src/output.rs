//! The standard output.

use std::{
    fmt::Display,
    io::{self, Write},
};

use crate::{Error, Result};

/// Writes to the standard output, which may be closed by who has read enough.
pub(crate) fn print(text: impl Display) -> Result<()> {
    match write!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::io("write to the standard output")(error))
        }
        _ => Ok(()),
    }
}
