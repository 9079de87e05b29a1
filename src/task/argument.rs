//! Arguments: values, futures, and vectors of futures, at any position.
//!
//! [`IntoArg`] says what may be passed for a parameter and writes it down; its `Repr` says how the
//! worker reads it back. Which of these apply is settled at compile time by the function's signature.

use std::{any::Any, cell::Cell, sync::Arc};

use smallvec::SmallVec;

use super::{Data, TaskError, Value};
use crate::{
    graph::{Arguments, Key},
    serialize::{Decoder, Encoder, Frame},
};

/// Something that can be passed for a parameter of type `P`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be passed for a parameter of type `{P}`",
    note = "a parameter takes a value of its type, a TaskFuture of it, or (a Vec parameter) a vector of futures"
)]
pub trait IntoArg<P> {
    /// How the worker reads it back.
    type Repr: ReadArg<P>;

    /// Writes it down.
    ///
    /// # Errors
    /// If it cannot be serialized.
    fn write(self, encoder: &mut ArgEncoder) -> Result<(), TaskError>;
}

/// A way to read a parameter of type `P` from encoded arguments.
pub trait ReadArg<P>: Send + Sync + 'static {
    /// Reads it.
    ///
    /// # Errors
    /// If the bytes are malformed, or a dependency is of another type.
    fn read(decoder: &mut ArgDecoder<'_>) -> Result<P, TaskError>;
}

/// Writes arguments down and collects the dependencies among them.
pub struct ArgEncoder {
    encoder: Encoder,
    dependencies: SmallVec<[Key; 2]>,
    kept: Kept,
}

thread_local! {
    /// Where arguments are written before it is known how many bytes they take, which most calls share.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Bytes up to which arguments are copied from there into memory of their own.
const SCRATCH_BYTES: usize = 64 << 10;

impl Default for ArgEncoder {
    fn default() -> Self {
        Self { encoder: Encoder::writing(SCRATCH.take()), dependencies: SmallVec::new(), kept: Kept::new() }
    }
}

/// Futures that were given away as arguments: they keep their results on the cluster until the
/// task that needs them is submitted.
pub(crate) type Kept = Vec<Box<dyn Any + Send>>;

impl ArgEncoder {
    /// Writes a value.
    ///
    /// # Errors
    /// If it cannot be serialized.
    pub fn value<T: Data>(&mut self, value: &T) -> Result<(), TaskError> {
        self.encoder.encode(value).map_err(|e| {
            TaskError::refused(format!("cannot send an argument of type {}: {e}", std::any::type_name::<T>()))
        })
    }

    /// Writes a reference to the result of `key`.
    ///
    /// # Errors
    /// None are known; the signature is that of its siblings.
    pub fn dependency(&mut self, key: Key) -> Result<(), TaskError> {
        let index = match self.dependencies.iter().rev().take(8).position(|&k| k == key) {
            Some(back) => self.dependencies.len() - 1 - back,
            None => {
                self.dependencies.push(key);
                self.dependencies.len() - 1
            }
        };
        self.value(&(index as u32))
    }

    /// Keeps what was given away until the task is submitted.
    pub(crate) fn keep(&mut self, given: impl Any + Send) {
        self.kept.push(Box::new(given));
    }

    /// The encoded arguments, the keys they refer to, and what is to be kept until they are submitted.
    pub(crate) fn finish(self) -> (Arguments, SmallVec<[Key; 2]>, Kept) {
        let (mut written, frames) = self.encoder.written();
        let frames = frames.into_iter().map(Frame).collect();
        let arguments = if written.len() > SCRATCH_BYTES {
            Arguments::new(written.into(), frames)
        } else {
            let arguments = Arguments::copied(&written, frames);
            written.clear();
            SCRATCH.set(written);
            arguments
        };
        (arguments, self.dependencies, self.kept)
    }
}

/// Reads arguments back where the dependencies are at hand.
pub struct ArgDecoder<'a> {
    decoder: Decoder<'a>,
    dependencies: Vec<Value>,
}

impl<'a> ArgDecoder<'a> {
    /// Reads `arguments`, which refer to `dependencies` by index.
    pub fn new(arguments: &'a Arguments, dependencies: Vec<Value>) -> Self {
        Self { decoder: arguments.decoder(), dependencies }
    }

    /// Reads a value.
    ///
    /// # Errors
    /// If the bytes are malformed.
    pub fn value<T: Data>(&mut self) -> Result<T, TaskError> {
        self.decoder.decode().map_err(|e| {
            TaskError::refused(format!("cannot read an argument of type {}: {e}", std::any::type_name::<T>()))
        })
    }

    /// Reads a reference and gives the dependency it refers to.
    ///
    /// # Errors
    /// If the bytes are malformed or there is no such dependency.
    pub fn dependency(&mut self) -> Result<Value, TaskError> {
        let index = self.value::<u32>()? as usize;
        let count = self.dependencies.len();
        self.dependencies
            .get(index)
            .cloned()
            .ok_or_else(|| TaskError::refused(format!("an argument refers to dependency {index} of {count}")))
    }
}

/// The parameter's value itself travels.
pub struct ByValue;
/// A dependency, moved or cloned into the parameter.
pub struct ByFuture;
/// A dependency, shared with the parameter: nothing is cloned.
pub struct ByShared;
/// Several dependencies, each moved or cloned.
pub struct ByFutures;
/// Several dependencies, each shared.
pub struct ByShareds;

impl<T: Data> IntoArg<T> for T {
    type Repr = ByValue;

    fn write(self, encoder: &mut ArgEncoder) -> Result<(), TaskError> {
        encoder.value(&self)
    }
}

impl IntoArg<String> for &str {
    type Repr = ByValue;

    fn write(self, encoder: &mut ArgEncoder) -> Result<(), TaskError> {
        encoder.value(&self.to_owned())
    }
}

impl<T: Data> ReadArg<T> for ByValue {
    fn read(decoder: &mut ArgDecoder<'_>) -> Result<T, TaskError> {
        decoder.value()
    }
}

impl<T: Data + Clone> ReadArg<T> for ByFuture {
    fn read(decoder: &mut ArgDecoder<'_>) -> Result<T, TaskError> {
        decoder.dependency()?.into_inner()
    }
}

impl<T: Data> ReadArg<Arc<T>> for ByShared {
    fn read(decoder: &mut ArgDecoder<'_>) -> Result<Arc<T>, TaskError> {
        decoder.dependency()?.get()
    }
}

impl<T: Data + Clone> ReadArg<Vec<T>> for ByFutures {
    fn read(decoder: &mut ArgDecoder<'_>) -> Result<Vec<T>, TaskError> {
        many(decoder, Value::into_inner)
    }
}

impl<T: Data> ReadArg<Vec<Arc<T>>> for ByShareds {
    fn read(decoder: &mut ArgDecoder<'_>) -> Result<Vec<Arc<T>>, TaskError> {
        many(decoder, |value| value.get())
    }
}

fn many<T>(
    decoder: &mut ArgDecoder<'_>,
    take: impl Fn(Value) -> Result<T, TaskError>,
) -> Result<Vec<T>, TaskError> {
    let count = decoder.value::<u32>()?;
    // An honest count is bounded by what follows; memory grows only as that is read.
    (0..count).map(|_| decoder.dependency().and_then(&take)).collect()
}

/// Writes a vector of references.
pub(crate) fn write_many(
    encoder: &mut ArgEncoder,
    keys: impl ExactSizeIterator<Item = Key>,
) -> Result<(), TaskError> {
    encoder.value(&(keys.len() as u32))?;
    for key in keys {
        encoder.dependency(key)?;
    }
    Ok(())
}
