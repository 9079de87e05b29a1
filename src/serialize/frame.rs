//! Buffers that travel untouched, and how they pass through serde's generic doors.

use std::{any::Any, fmt, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::OUT_OF_BAND;

/// A buffer of bytes that is neither copied when it is written in this crate's format nor when it
/// is read. In other formats it is plain bytes.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Frame(pub Bytes);

/// The name by which the format's two sides know a frame.
pub(super) const NAME: &str = "$rankine::Frame";

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({} B)", self.0.len())
    }
}

/// What a frame hands to the serializer.
pub(super) struct RawFrame(pub(super) Bytes);

impl Serialize for RawFrame {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

/// What the deserializer hands to a frame.
pub(super) struct FrameSource(pub(super) Bytes);

impl<'de> Deserializer<'de> for FrameSource {
    type Error = super::Error;

    fn deserialize_any<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, super::Error> {
        visitor.visit_byte_buf(self.0.to_vec())
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl Serialize for Frame {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct(NAME, &RawFrame(self.0.clone()))
    }
}

impl<'de> Deserialize<'de> for Frame {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Frame;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a buffer of bytes")
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Frame, D::Error> {
                match cast::<D, FrameSource>(inner) {
                    Ok(source) => Ok(Frame(source.0)),
                    Err(other) => other.deserialize_byte_buf(self),
                }
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Frame, E> {
                Ok(Frame(Bytes::copy_from_slice(bytes)))
            }

            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Frame, E> {
                Ok(Frame(bytes.into()))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut sequence: A) -> Result<Frame, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = sequence.next_element::<u8>()? {
                    bytes.push(byte);
                }
                Ok(Frame(bytes.into()))
            }
        }

        deserializer.deserialize_newtype_struct(NAME, Visitor)
    }
}

/// `value` as a `B`, if `A` is `B`; `B` has no lifetimes.
fn cast<A, B: 'static>(value: A) -> Result<B, A> {
    if typeid::of::<A>() == typeid::of::<B>() {
        let value = std::mem::ManuallyDrop::new(value);
        // SAFETY: the types are the same, as `B` has no lifetimes in which they could differ; the
        // original is never used or dropped again.
        Ok(unsafe { std::mem::transmute_copy::<A, B>(&value) })
    } else {
        Err(value)
    }
}

/// `value` as an `A`, if `A` is `B`; `B` has no lifetimes.
fn cast_back<A, B: 'static>(value: B) -> Option<A> {
    if typeid::of::<A>() != typeid::of::<B>() {
        return None;
    }
    let value = std::mem::ManuallyDrop::new(value);
    // SAFETY: as in `cast`, the other way round.
    Some(unsafe { std::mem::transmute_copy::<B, A>(&value) })
}

/// `value` as a `&B`, if `A` is `B`; `B` has no lifetimes.
pub(super) fn cast_ref<A: ?Sized, B: 'static>(value: &A) -> Option<&B> {
    if typeid::of::<A>() == typeid::of::<B>() {
        // SAFETY: the types are the same but for lifetimes; `B` has none, or it is a shared
        // reference that `through` uses no longer than `value` lives.
        Some(unsafe { &*std::ptr::from_ref(value).cast::<B>() })
    } else {
        None
    }
}

/// `value` as a `&B`, if `A` is `B` or a reference to `B` (as elements of sequences come).
fn through<A: ?Sized, B: 'static>(value: &A) -> Option<&B> {
    // A reference's lifetime is hidden here, and bounded again by `value`'s on the way out.
    cast_ref::<A, B>(value).or_else(|| cast_ref::<A, &'static B>(value).copied())
}

/// A kind of number that sequences are packed of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) code: u8,
    pub(super) size: usize,
}

macro_rules! visit {
    ($number:ty, $bytes:ident, $visitor:ident) => {{
        let number: $number = bytemuck::pod_read_unaligned($bytes);
        de::IntoDeserializer::<super::Error>::into_deserializer(number).deserialize_any($visitor)
    }};
}

macro_rules! numbers {
    ($($code:literal $number:ty),*) => {
        /// The kind of `T`, if it is a number.
        pub(super) fn kind_of<T: ?Sized>() -> Option<Kind> {
            let id = typeid::of::<T>();
            $(if id == typeid::of::<$number>() || id == typeid::of::<&$number>() {
                return Some(Kind { code: $code, size: size_of::<$number>() });
            })*
            None
        }

        /// The bytes of `T`, if it is a number of that kind.
        pub(super) fn number_bytes<T: ?Sized>(kind: Kind, value: &T) -> Option<&[u8]> {
            match kind.code {
                $($code => through::<T, $number>(value).map(bytemuck::bytes_of),)*
                _ => None,
            }
        }

        /// The kind that a stream names.
        pub(super) fn kind_from(code: u8) -> Option<Kind> {
            match code {
                $($code => Some(Kind { code, size: size_of::<$number>() }),)*
                _ => None,
            }
        }

        /// The bytes of `T`, if it is a vector of numbers.
        pub(super) fn vector_bytes<T: ?Sized>(value: &T) -> Option<(Kind, usize, &[u8])> {
            $(if let Some(vector) = through::<T, Vec<$number>>(value) {
                let kind = Kind { code: $code, size: size_of::<$number>() };
                return Some((kind, vector.len(), bytemuck::cast_slice(vector)));
            })*
            None
        }

        /// The frame of a big shared vector of numbers; it keeps the vector alive.
        pub(super) fn shared_vector(mut value: Arc<dyn Any + Send + Sync>) -> Option<(Kind, usize, Bytes)> {
            $(match value.downcast::<Vec<$number>>() {
                Ok(vector) => {
                    struct Owner(Arc<Vec<$number>>);
                    impl AsRef<[u8]> for Owner {
                        fn as_ref(&self) -> &[u8] {
                            bytemuck::cast_slice(&self.0)
                        }
                    }
                    let (kind, count) = (Kind { code: $code, size: size_of::<$number>() }, vector.len());
                    return (count * kind.size >= OUT_OF_BAND)
                        .then(|| (kind, count, Bytes::from_owner(Owner(vector))));
                }
                Err(other) => value = other,
            })*
            drop(value);
            None
        }

        /// A vector of numbers from its frame, if `T` is that.
        pub(super) fn vector_from<T>(kind: Kind, bytes: &[u8]) -> Option<T> {
            $(if kind.code == $code && typeid::of::<T>() == typeid::of::<Vec<$number>>() {
                let vector: Vec<$number> = bytemuck::pod_collect_to_vec(bytes);
                return cast_back(vector);
            })*
            None
        }

        /// Hands the number at the front of `bytes` to a visitor.
        pub(super) fn visit_number<'de, V: de::Visitor<'de>>(
            kind: Kind,
            bytes: &[u8],
            visitor: V,
        ) -> Result<V::Value, super::Error> {
            match kind.code {
                $($code => visit!($number, bytes, visitor),)*
                _ => Err(super::Error::Malformed("kind of number")),
            }
        }
    };
}

numbers!(1 u8, 2 i8, 3 u16, 4 i16, 5 u32, 6 i32, 7 u64, 8 i64, 9 f32, 10 f64);
