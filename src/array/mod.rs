//! Array chunks: typed views over shared buffers.
//!
//! Nothing here knows of tasks or workers: a chunk is a value like any other, whose buffer travels
//! as a frame. Start with [`Chunk`].

mod chunk;
mod npy;

pub use chunk::{Chunk, Element, ShapeError};
pub use npy::{NpyError, NpyFile, Order, create_npy, write_npy};
