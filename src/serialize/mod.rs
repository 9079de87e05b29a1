//! A compact serde format whose big buffers travel out of band.
//!
//! While a value is written, big contiguous memory inside it (array chunks, byte buffers, sequences
//! of numbers) is not put into the stream: it is set aside as a frame, and the stream says only that
//! it is there (the idea of pickle's protocol 5). A struct of three chunks and a string becomes one
//! small head and three frames; a [`Frame`] or chunk is never copied, on either side.
//!
//! Numbers are little-endian, lengths 64 bits; the format does not describe itself. Every value takes
//! at least one byte of the head, so that a hostile length is refused before anything is allocated.

mod de;
mod frame;
mod local;
mod ser;
#[cfg(test)]
mod tests;

use std::{any::Any, sync::Arc};

use bytes::Bytes;
pub use de::Decoder;
pub use frame::Frame;
pub use local::Local;
pub use ser::Encoder;
use serde::{Serialize, de::DeserializeOwned};

/// Buffers of at least this many bytes travel as frames of their own.
pub const OUT_OF_BAND: usize = 4096;

/// Why something cannot be written or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes end too early.
    #[error("the bytes end where {0} should follow")]
    End(&'static str),
    /// Something is left over.
    #[error("{0} bytes and {1} frames are left over")]
    Rest(usize, usize),
    /// The bytes cannot be what they should.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// Values are nested too deeply.
    #[error("values are nested more than {0} deep")]
    Depth(u32),
    /// The type asks for what only self-describing formats have.
    #[error("this format does not say what follows, so a type cannot ask it (deserialize_any)")]
    NotSelfDescribing,
    /// The type itself refuses.
    #[error("{0}")]
    Custom(String),
}

impl serde::ser::Error for Error {
    fn custom<T: std::fmt::Display>(text: T) -> Self {
        Self::Custom(text.to_string())
    }
}

impl serde::de::Error for Error {
    fn custom<T: std::fmt::Display>(text: T) -> Self {
        Self::Custom(text.to_string())
    }
}

/// Writes a value: its head and its frames.
///
/// # Errors
/// If its type refuses.
pub fn to_frames<T: Serialize + ?Sized>(value: &T) -> Result<(Bytes, Vec<Bytes>), Error> {
    let mut encoder = Encoder::default();
    encoder.encode(value)?;
    Ok(encoder.finish())
}

/// [`to_frames`] of a shared value: a big vector of numbers is not copied, the frame keeps it alive.
///
/// # Errors
/// If its type refuses.
pub fn to_frames_shared<T: Serialize + Send + Sync + 'static>(
    value: &Arc<T>,
) -> Result<(Bytes, Vec<Bytes>), Error> {
    match frame::shared_vector(value.clone() as Arc<dyn Any + Send + Sync>) {
        Some((kind, count, frame)) => {
            let mut encoder = Encoder::default();
            encoder.framed_sequence(kind, count, frame);
            Ok(encoder.finish())
        }
        None => to_frames(&**value),
    }
}

/// Reads a value that [`to_frames`] wrote.
///
/// # Errors
/// If the bytes are not that of such a value, or something is left over.
pub fn from_frames<T: DeserializeOwned>(head: Bytes, frames: Vec<Bytes>) -> Result<T, Error> {
    let mut decoder = Decoder::new(&head, frames);
    let value = decoder.decode()?;
    decoder.finish()?;
    Ok(value)
}

/// Bytes that [`to_frames`] would write, head and frames together, without writing them.
///
/// # Errors
/// If its type refuses.
pub fn nbytes<T: Serialize + ?Sized>(value: &T) -> Result<u64, Error> {
    let mut encoder = Encoder::counting();
    encoder.encode(value)?;
    Ok(encoder.count())
}
