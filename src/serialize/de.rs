//! Reading what may be hostile: every length is checked against what is there before it is used.

use bytes::Bytes;
use serde::{
    Deserializer,
    de::{self, DeserializeOwned, DeserializeSeed, Visitor},
};

use super::{
    Error,
    frame::{FrameSource, Kind, NAME, kind_from, vector_from, visit_number},
    ser::{FRAMED, INLINE},
};

/// How deeply values may be nested.
const DEPTH: u32 = 128;

/// Reads values one after the other.
pub struct Decoder<'h> {
    head: &'h [u8],
    /// What buffers within the head can be views of.
    owner: Option<&'h Bytes>,
    at: usize,
    frames: std::vec::IntoIter<Bytes>,
}

impl<'h> Decoder<'h> {
    /// Reads from a head and its frames.
    pub fn new(head: &'h Bytes, frames: Vec<Bytes>) -> Self {
        Self { head, owner: Some(head), at: 0, frames: frames.into_iter() }
    }

    /// Reads from a head without frames, of which buffers are copied.
    pub(crate) fn of_slice(head: &'h [u8]) -> Self {
        Self { head, owner: None, at: 0, frames: Vec::new().into_iter() }
    }

    /// Reads the next value.
    ///
    /// # Errors
    /// If the bytes are not those of such a value.
    pub fn decode<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        // A big vector of numbers is taken in one piece.
        if self.head.get(self.at) == Some(&FRAMED)
            && let Some(kind) = self.head.get(self.at + 1).copied().and_then(kind_from)
        {
            let place = self.at + 2;
            if let (Some(length), Some(frame)) =
                (self.head.get(place..place + 8), self.frames.as_slice().first())
            {
                let count = u64::from_le_bytes(length.try_into().unwrap_or_default());
                if count.checked_mul(kind.size as u64) == Some(frame.len() as u64)
                    && let Some(vector) = vector_from::<T>(kind, frame)
                {
                    self.at = place + 8;
                    self.frames.next();
                    return Ok(vector);
                }
            }
        }
        T::deserialize(Reader { decoder: self, depth: DEPTH })
    }

    /// Makes sure that nothing is left.
    ///
    /// # Errors
    /// If something is.
    pub fn finish(self) -> Result<(), Error> {
        match (self.head.len() - self.at, self.frames.len()) {
            (0, 0) => Ok(()),
            (bytes, frames) => Err(Error::Rest(bytes, frames)),
        }
    }

    fn rest(&self) -> u64 {
        (self.head.len() - self.at) as u64
    }

    fn take(&mut self, count: usize, what: &'static str) -> Result<&'h [u8], Error> {
        let bytes = self.head.get(self.at..self.at.saturating_add(count)).ok_or(Error::End(what))?;
        self.at += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Error> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn byte(&mut self, what: &'static str) -> Result<u8, Error> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    /// A count of things each of which takes a byte of the head at least.
    fn count(&mut self, what: &'static str) -> Result<usize, Error> {
        let count = u64::from_le_bytes(self.array(what)?);
        if count > self.rest() { Err(Error::End(what)) } else { Ok(count as usize) }
    }

    fn frame(&mut self) -> Result<Bytes, Error> {
        self.frames.next().ok_or(Error::End("a frame"))
    }

    /// A buffer, shared with the head or a frame of its own.
    fn buffer(&mut self) -> Result<Bytes, Error> {
        let owner = self.owner;
        Ok(match self.bytes()? {
            Buffer::Frame(frame) => frame,
            Buffer::Inline(bytes) => {
                owner.map_or_else(|| Bytes::copy_from_slice(bytes), |owner| owner.slice_ref(bytes))
            }
        })
    }

    /// A buffer where it lies.
    fn bytes(&mut self) -> Result<Buffer<'h>, Error> {
        match self.byte("a buffer")? {
            INLINE => {
                let count = self.count("a buffer")?;
                Ok(Buffer::Inline(self.take(count, "a buffer")?))
            }
            FRAMED => Ok(Buffer::Frame(self.frame()?)),
            _ => Err(Error::Malformed("buffer")),
        }
    }

    fn variant(&mut self) -> Result<u32, Error> {
        match self.byte("a variant")? {
            u8::MAX => Ok(u32::from_le_bytes(self.array("a variant")?)),
            index => Ok(index.into()),
        }
    }
}

/// A buffer within the head, or a frame.
enum Buffer<'h> {
    Inline(&'h [u8]),
    Frame(Bytes),
}

impl std::ops::Deref for Buffer<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Inline(bytes) => bytes,
            Self::Frame(frame) => frame,
        }
    }
}

struct Reader<'a, 'h> {
    decoder: &'a mut Decoder<'h>,
    depth: u32,
}

impl Reader<'_, '_> {
    fn deeper(self) -> Result<Self, Error> {
        let depth = self.depth.checked_sub(1).ok_or(Error::Depth(DEPTH))?;
        Ok(Self { depth, ..self })
    }

    fn fields(self, length: usize) -> Result<Elements<Self>, Error> {
        let mut reader = self.deeper()?;
        if length == 0 {
            reader.decoder.byte("a value without fields")?;
        }
        reader = Reader { decoder: reader.decoder, depth: reader.depth };
        Ok(Elements { reader, left: length })
    }
}

macro_rules! fixed {
    ($($method:ident $visit:ident $number:ty),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.$visit(<$number>::from_le_bytes(self.decoder.array(stringify!($number))?))
        }
    )*};
}

impl<'de> Deserializer<'de> for Reader<'_, '_> {
    type Error = Error;

    fixed!(
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64, deserialize_i128 visit_i128 i128, deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64,
        deserialize_u128 visit_u128 u128, deserialize_f32 visit_f32 f32, deserialize_f64 visit_f64 f64
    );

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::NotSelfDescribing)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::NotSelfDescribing)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::NotSelfDescribing)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.decoder.byte("a bool")? {
            0 => visitor.visit_bool(false),
            1 => visitor.visit_bool(true),
            _ => Err(Error::Malformed("bool")),
        }
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let code = u32::from_le_bytes(self.decoder.array("a char")?);
        visitor.visit_char(char::from_u32(code).ok_or(Error::Malformed("char"))?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let bytes = self.decoder.bytes()?;
        visitor.visit_str(std::str::from_utf8(&bytes).map_err(|_| Error::Malformed("text"))?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bytes(&self.decoder.bytes()?)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_byte_buf(self.decoder.bytes()?.to_vec())
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.decoder.byte("an option")? {
            0 => visitor.visit_none(),
            1 => visitor.visit_some(self.deeper()?),
            _ => Err(Error::Malformed("option")),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.decoder.byte("a unit")?;
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        if name == NAME {
            return visitor.visit_newtype_struct(FrameSource(self.decoder.buffer()?));
        }
        visitor.visit_newtype_struct(self.deeper()?)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let reader = self.deeper()?;
        match reader.decoder.byte("a sequence")? {
            INLINE => {
                let left = reader.decoder.count("a sequence")?;
                visitor.visit_seq(Elements { reader, left })
            }
            FRAMED => {
                let kind = kind_from(reader.decoder.byte("a kind of number")?)
                    .ok_or(Error::Malformed("kind of number"))?;
                let count = u64::from_le_bytes(reader.decoder.array("a sequence")?);
                let frame = reader.decoder.frame()?;
                if count.checked_mul(kind.size as u64) != Some(frame.len() as u64) {
                    return Err(Error::Malformed("sequence: its count does not fit its frame"));
                }
                visitor.visit_seq(Numbers { kind, bytes: &frame })
            }
            _ => Err(Error::Malformed("sequence")),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(self.fields(length)?)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_seq(self.fields(length)?)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let reader = self.deeper()?;
        let left = reader.decoder.count("a map")?;
        visitor.visit_map(Elements { reader, left })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_seq(self.fields(fields.len())?)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(self.deeper()?)
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

/// Elements that follow one another in the head.
struct Elements<R> {
    reader: R,
    left: usize,
}

impl Elements<Reader<'_, '_>> {
    fn next<'de, S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        seed.deserialize(Reader { decoder: &mut *self.reader.decoder, depth: self.reader.depth })
    }
}

impl<'de> de::SeqAccess<'de> for Elements<Reader<'_, '_>> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.next(seed).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

impl<'de> de::MapAccess<'de> for Elements<Reader<'_, '_>> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        de::SeqAccess::next_element_seed(self, seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        self.next(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

/// Numbers packed in a frame.
struct Numbers<'b> {
    kind: Kind,
    bytes: &'b [u8],
}

impl<'de> de::SeqAccess<'de> for Numbers<'_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let Some((number, rest)) = self.bytes.split_at_checked(self.kind.size) else {
            return Ok(None);
        };
        self.bytes = rest;
        seed.deserialize(Number { kind: self.kind, bytes: number }).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.bytes.len() / self.kind.size)
    }
}

struct Number<'b> {
    kind: Kind,
    bytes: &'b [u8],
}

impl<'de> Deserializer<'de> for Number<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visit_number(self.kind, self.bytes, visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de> de::EnumAccess<'de> for Reader<'_, '_> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Error> {
        let index = self.decoder.variant()?;
        let value = seed.deserialize(de::IntoDeserializer::<Error>::into_deserializer(index))?;
        Ok((value, self))
    }
}

impl<'de> de::VariantAccess<'de> for Reader<'_, '_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Elements { reader: self, left: length })
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_seq(Elements { reader: self, left: fields.len() })
    }
}
