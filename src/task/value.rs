//! Results and scattered data: values whose type only their makers and users know.

use std::{
    any::{Any, TypeId, type_name},
    fmt,
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use xxhash_rust::xxh3::xxh3_64;

use super::TaskError;
use crate::serialize::{self, Frame};

/// What can be a result or an argument: any type that serde can write and read.
pub trait Data: Serialize + DeserializeOwned + Send + Sync + 'static {}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Data for T {}

/// A value as it is held and handed on: itself, or its bytes until somebody needs it.
///
/// Cheap to clone.
#[derive(Clone)]
pub enum Value {
    /// The value itself.
    Object(Object),
    /// Its bytes, from another process.
    Serialized(Arc<Serialized>),
}

/// A value of a type that is not known here.
#[derive(Clone)]
pub struct Object {
    value: Arc<dyn Any + Send + Sync>,
    vtable: &'static Vtable,
}

/// The bytes of a value.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Serialized {
    /// [`type_hash`] of its type.
    pub type_hash: u64,
    /// The head of its encoding.
    pub head: Frame,
    /// The big buffers within it, untouched.
    pub frames: Vec<Frame>,
}

struct Vtable {
    type_name: fn() -> &'static str,
    serialize: fn(Arc<dyn Any + Send + Sync>) -> Result<Serialized, TaskError>,
    nbytes: fn(&(dyn Any + Send + Sync)) -> u64,
}

trait HasVtable {
    const VTABLE: Vtable;
}

impl<T: Data> HasVtable for T {
    const VTABLE: Vtable = Vtable {
        type_name: type_name::<T>,
        serialize: |value| {
            let type_hash = type_hash::<T>();
            let refuse = |e: serialize::Error| {
                TaskError::refused(format!("cannot send a value of type {}: {e}", type_name::<T>()))
            };
            let value =
                value.downcast::<T>().map_err(|_| TaskError::refused("a value and its type parted"))?;
            let (head, frames) = serialize::to_frames_shared(&value).map_err(refuse)?;
            Ok(Serialized { type_hash, head: Frame(head), frames: frames.into_iter().map(Frame).collect() })
        },
        nbytes: |value| value.downcast_ref::<T>().map_or(0, nbytes_of),
    };
}

/// What tells types apart on the wire.
pub fn type_hash<T: 'static>() -> u64 {
    xxh3_64(type_name::<T>().as_bytes())
}

fn nbytes_of<T: Data>(value: &T) -> u64 {
    // What is small and flat need not be walked.
    let flat = [TypeId::of::<i64>(), TypeId::of::<u64>(), TypeId::of::<f64>(), TypeId::of::<()>()];
    if flat.contains(&TypeId::of::<T>()) {
        return size_of::<T>() as u64;
    }
    serialize::nbytes(value).unwrap_or(size_of::<T>() as u64)
}

impl Value {
    /// Holds `value`.
    pub fn new<T: Data>(value: T) -> Self {
        Self::from_arc(Arc::new(value))
    }

    /// Holds a value that is shared already.
    pub fn from_arc<T: Data>(value: Arc<T>) -> Self {
        Self::Object(Object { value, vtable: const { &T::VTABLE } })
    }

    /// The value, shared; read from its bytes if it came as bytes.
    ///
    /// # Errors
    /// If it is of another type or its bytes are malformed.
    pub fn get<T: Data>(&self) -> Result<Arc<T>, TaskError> {
        match self {
            Self::Object(object) => object.value.clone().downcast::<T>().map_err(|_| {
                TaskError::refused(format!(
                    "a value of type {} was taken for a {}",
                    (object.vtable.type_name)(),
                    type_name::<T>()
                ))
            }),
            Self::Serialized(bytes) => bytes.read().map(Arc::new),
        }
    }

    /// The value itself: moved out where nobody else holds it, cloned where somebody does.
    ///
    /// # Errors
    /// As [`Value::get`].
    pub fn into_inner<T: Data + Clone>(self) -> Result<T, TaskError> {
        match self {
            Self::Serialized(bytes) => bytes.read(),
            Self::Object(_) => self.get::<T>().map(|shared| {
                drop(self);
                Arc::unwrap_or_clone(shared)
            }),
        }
    }

    /// Its bytes; big buffers within it are shared, not copied, where its type allows.
    ///
    /// # Errors
    /// If its type cannot be serialized.
    pub fn serialized(&self) -> Result<Arc<Serialized>, TaskError> {
        match self {
            Self::Object(object) => (object.vtable.serialize)(object.value.clone()).map(Arc::new),
            Self::Serialized(bytes) => Ok(bytes.clone()),
        }
    }

    /// The same value as bytes.
    ///
    /// # Errors
    /// As [`Value::serialized`].
    pub fn to_wire(&self) -> Result<Self, TaskError> {
        self.serialized().map(Self::Serialized)
    }

    /// Bytes it occupies, as far as its serialization tells.
    pub fn nbytes(&self) -> u64 {
        match self {
            Self::Object(object) => (object.vtable.nbytes)(&*object.value),
            Self::Serialized(bytes) => bytes.nbytes(),
        }
    }
}

impl Serialized {
    fn read<T: Data>(&self) -> Result<T, TaskError> {
        if self.type_hash != type_hash::<T>() {
            return Err(TaskError::refused(format!(
                "a value of another type was taken for a {}",
                type_name::<T>()
            )));
        }
        let frames = self.frames.iter().map(|frame| frame.0.clone()).collect();
        serialize::from_frames(self.head.0.clone(), frames)
            .map_err(|e| TaskError::refused(format!("cannot read a value of type {}: {e}", type_name::<T>())))
    }

    fn nbytes(&self) -> u64 {
        self.head.0.len() as u64 + self.frames.iter().map(|f| f.0.len() as u64).sum::<u64>()
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.serialized().map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Serialized::deserialize(deserializer).map(|bytes| Self::Serialized(Arc::new(bytes)))
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(object) => write!(f, "Value({})", (object.vtable.type_name)()),
            Self::Serialized(bytes) => write!(f, "Value({} B)", bytes.nbytes()),
        }
    }
}
