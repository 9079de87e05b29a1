//! What travels.

use std::any::Any;

use bytes::Bytes;

/// A small head and zero or more payload frames.
///
/// The head is decoded by the receiver; frames are array chunks and other big buffers, which no
/// transport copies in user space. Frames keep their number, order and lengths (0 B to many GiB).
#[derive(Debug, Default)]
pub struct Message {
    /// What the receiver parses, some bytes to some MiB.
    pub head: Bytes,
    /// Payload that is handed over untouched.
    pub frames: Vec<Bytes>,
    /// A value handed over as it is. Only a connection whose
    /// [`carries_objects`](crate::Connection::carries_objects) is true takes it; every other one
    /// refuses the message with [`Error::Object`](crate::Error::Object).
    pub object: Option<Box<dyn Any + Send>>,
}

impl Message {
    /// A message of a head and frames.
    pub fn new(head: impl Into<Bytes>, frames: Vec<Bytes>) -> Self {
        Self { head: head.into(), frames, object: None }
    }

    /// A message that is one value, for connections within a process.
    pub fn object(object: impl Any + Send) -> Self {
        Self { object: Some(Box::new(object)), ..Self::default() }
    }

    /// Bytes of head and frames together.
    pub fn nbytes(&self) -> u64 {
        self.head.len() as u64 + self.frames.iter().map(|f| f.len() as u64).sum::<u64>()
    }
}
