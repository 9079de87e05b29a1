//! The transport contract of Rankine.

mod address;
mod error;
mod message;
mod transport;

pub use address::Address;
pub use error::{Error, Result};
pub use message::Message;
pub use transport::{Connection, Limits, Listener, Receiver, Sender, Transport};
