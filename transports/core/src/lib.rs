//! The transport contract of Rankine: messages of untouched frames over ordered, reliable connections.
//!
//! A [`Transport`] listens and connects under its URL scheme; a [`Registry`] holds those that a
//! program has. Peers prove a shared [`Secret`] to each other before anything else is parsed. This
//! crate knows no role: what the messages mean is the business of whoever sends them.
//!
//! A program that sends a chunk to itself, over TCP:
//!
//! ```
//! use rankine_transport::*;
//! use rankine_transport_tcp::Tcp;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<()> {
//! let registry = Registry::new().with(Tcp::default());
//! let secret = Secret::random();
//! let mut listener = registry.listen(&"tcp://127.0.0.1:0".parse()?).await?;
//! let address = listener.address().clone();
//!
//! let serve = async {
//!     let mut visitor = listener.accept().await?;
//!     authenticate(&mut visitor, &secret, Side::Accepting).await?;
//!     visitor.receiver.recv().await
//! };
//! let visit = async {
//!     let mut connection = registry.connect(&address).await?;
//!     authenticate(&mut connection, &secret, Side::Connecting).await?;
//!     let chunk = bytes::Bytes::from(vec![42; 1 << 20]);
//!     connection.sender.send(Message::new("a chunk", vec![chunk])).await?;
//!     connection.sender.close().await?;
//!     Ok(connection)
//! };
//! let (received, _open) = tokio::try_join!(serve, visit)?;
//! let message = received.expect("one message came before the close");
//! assert_eq!((&message.head[..], message.frames[0].len()), (&b"a chunk"[..], 1 << 20));
//! # Ok(())
//! # }
//! ```

mod address;
mod auth;
pub mod bare;
pub mod batch;
pub mod blocks;
mod buffer;
pub mod compression;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod memory;
mod message;
pub mod prefix;
mod registry;
mod transport;

pub use address::Address;
pub use auth::{Secret, Side, authenticate};
pub use buffer::AlignedBuffer;
pub use error::{Error, Result};
pub use memory::give_back;
pub use message::Message;
pub use registry::Registry;
pub use transport::{Connection, Limits, Listener, Receiver, Sender, Transport};
