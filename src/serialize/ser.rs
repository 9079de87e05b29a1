//! Writing.

use bytes::Bytes;
use serde::{Serialize, Serializer, ser};

use super::{
    Error, OUT_OF_BAND,
    frame::{Kind, NAME, RawFrame, cast_ref, kind_of, number_bytes, vector_bytes},
};

/// Tags of sequences and buffers.
pub(super) const INLINE: u8 = 0;
pub(super) const FRAMED: u8 = 1;

/// Writes values one after the other.
#[derive(Default)]
pub struct Encoder {
    head: Vec<u8>,
    frames: Vec<Bytes>,
    /// Bytes counted instead of written, where nothing is to be written.
    counted: Option<u64>,
}

impl Encoder {
    /// Writes behind what is there already.
    pub(crate) fn writing(head: Vec<u8>) -> Self {
        Self { head, ..Self::default() }
    }

    pub(super) fn counting() -> Self {
        Self { counted: Some(0), ..Self::default() }
    }

    pub(super) fn count(&self) -> u64 {
        self.counted.unwrap_or(0)
    }

    /// Appends a value.
    ///
    /// # Errors
    /// If its type refuses; what was written before it is then of no use either.
    pub fn encode<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.value(value)
    }

    /// The head and the frames.
    pub fn finish(self) -> (Bytes, Vec<Bytes>) {
        (self.head.into(), self.frames)
    }

    /// The same, where the head's memory is to be used again.
    pub(crate) fn written(self) -> (Vec<u8>, Vec<Bytes>) {
        (self.head, self.frames)
    }

    fn put(&mut self, bytes: &[u8]) {
        match &mut self.counted {
            None => self.head.extend_from_slice(bytes),
            Some(count) => *count += bytes.len() as u64,
        }
    }

    fn frame(&mut self, frame: Bytes) {
        match &mut self.counted {
            None => self.frames.push(frame),
            Some(count) => *count += frame.len() as u64,
        }
    }

    fn length(&mut self, length: usize) {
        self.put(&(length as u64).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        if self.counted.is_none() && bytes.len() >= OUT_OF_BAND {
            self.put(&[FRAMED]);
            self.frame(Bytes::copy_from_slice(bytes));
        } else {
            self.put(&[INLINE]);
            self.length(bytes.len());
            self.put(bytes);
        }
    }

    /// A sequence of numbers that travels as a frame.
    pub(super) fn framed_sequence(&mut self, kind: Kind, count: usize, frame: Bytes) {
        self.put(&[FRAMED, kind.code]);
        self.length(count);
        self.frame(frame);
    }

    fn value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        if let Some((kind, count, bytes)) = vector_bytes(value) {
            if self.counted.is_some() || bytes.len() < OUT_OF_BAND {
                self.put(&[INLINE]);
                self.length(count);
                self.put(bytes);
            } else {
                self.framed_sequence(kind, count, Bytes::copy_from_slice(bytes));
            }
            return Ok(());
        }
        value.serialize(self)
    }
}

macro_rules! fixed {
    ($($method:ident $number:ty),*) => {$(
        fn $method(self, number: $number) -> Result<(), Error> {
            self.put(&number.to_le_bytes());
            Ok(())
        }
    )*};
}

impl<'a> Serializer for &'a mut Encoder {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Sequence<'a>;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Map<'a>;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    fixed!(
        serialize_i8 i8, serialize_i16 i16, serialize_i32 i32, serialize_i64 i64, serialize_i128 i128,
        serialize_u8 u8, serialize_u16 u16, serialize_u32 u32, serialize_u64 u64, serialize_u128 u128,
        serialize_f32 f32, serialize_f64 f64
    );

    fn serialize_bool(self, value: bool) -> Result<(), Error> {
        self.serialize_u8(u8::from(value))
    }

    fn serialize_char(self, value: char) -> Result<(), Error> {
        self.serialize_u32(value.into())
    }

    fn serialize_str(self, value: &str) -> Result<(), Error> {
        self.bytes(value.as_bytes());
        Ok(())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Error> {
        self.bytes(value);
        Ok(())
    }

    fn serialize_none(self) -> Result<(), Error> {
        self.serialize_u8(0)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        self.put(&[1]);
        self.value(value)
    }

    fn serialize_unit(self) -> Result<(), Error> {
        self.serialize_u8(0)
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _: &'static str, index: u32, _: &'static str) -> Result<(), Error> {
        self.variant(index);
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        if name == NAME
            && let Some(RawFrame(bytes)) = cast_ref(value)
        {
            if self.counted.is_none() && bytes.len() >= OUT_OF_BAND {
                self.put(&[FRAMED]);
                self.frame(bytes.clone());
            } else {
                self.bytes(bytes);
            }
            return Ok(());
        }
        self.value(value)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.variant(index);
        self.value(value)
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<Sequence<'a>, Error> {
        Ok(Sequence { encoder: self, length, start: None, count: 0, packed: None })
    }

    fn serialize_tuple(self, length: usize) -> Result<Self, Error> {
        self.fields(length)
    }

    fn serialize_tuple_struct(self, _: &'static str, length: usize) -> Result<Self, Error> {
        self.fields(length)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Error> {
        self.variant(index);
        Ok(self)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Map<'a>, Error> {
        let start = self.head.len();
        self.length(0);
        Ok(Map { encoder: self, start, count: 0 })
    }

    fn serialize_struct(self, _: &'static str, length: usize) -> Result<Self, Error> {
        self.fields(length)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self, Error> {
        self.variant(index);
        Ok(self)
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

impl Encoder {
    fn variant(&mut self, index: u32) {
        // Few enums have more than 255 variants; those that do take four bytes more.
        match u8::try_from(index) {
            Ok(index) if index < u8::MAX => self.put(&[index]),
            _ => {
                self.put(&[u8::MAX]);
                self.put(&index.to_le_bytes());
            }
        }
    }

    /// What has no fields still takes a byte.
    fn fields(&mut self, length: usize) -> Result<&mut Self, Error> {
        if length == 0 {
            self.put(&[0]);
        }
        Ok(self)
    }
}

/// Writes a sequence; one of many numbers becomes a frame.
pub struct Sequence<'a> {
    encoder: &'a mut Encoder,
    length: Option<usize>,
    /// Where the count of an inline sequence is to be written.
    start: Option<usize>,
    count: usize,
    packed: Option<(Kind, Vec<u8>)>,
}

impl Sequence<'_> {
    fn begin_inline(&mut self) {
        self.encoder.put(&[INLINE]);
        self.start = Some(self.encoder.head.len());
        self.encoder.length(0);
    }

    /// Adds a number to the frame, if this is a sequence of such numbers.
    fn pack<T: ?Sized>(&mut self, value: &T) -> bool {
        let Some((kind, buffer)) = &mut self.packed else { return false };
        let Some(bytes) = number_bytes(*kind, value) else { return false };
        buffer.extend_from_slice(bytes);
        true
    }
}

impl ser::SerializeSeq for Sequence<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        if self.count == 0 {
            let length = self.length.unwrap_or(0);
            match kind_of::<T>() {
                Some(kind)
                    if length.saturating_mul(kind.size) >= OUT_OF_BAND && self.encoder.counted.is_none() =>
                {
                    self.packed = Some((kind, Vec::with_capacity(length * kind.size)));
                }
                _ => self.begin_inline(),
            }
        }
        self.count += 1;
        if self.packed.is_some() {
            if self.pack(value) {
                return Ok(());
            }
            // Not all of one kind after all: numbers look the same inline.
            if let Some((_, buffer)) = self.packed.take() {
                self.begin_inline();
                self.encoder.put(&buffer);
            }
        }
        self.encoder.value(value)
    }

    fn end(mut self) -> Result<(), Error> {
        if let Some((kind, buffer)) = self.packed.take() {
            self.encoder.framed_sequence(kind, self.count, buffer.into());
            return Ok(());
        }
        if self.count == 0 {
            self.begin_inline();
        }
        patch(self.encoder, self.start, self.count);
        Ok(())
    }
}

/// Writes the count that was not known at the start.
fn patch(encoder: &mut Encoder, start: Option<usize>, count: usize) {
    if encoder.counted.is_none()
        && let Some(place) = start.and_then(|start| encoder.head.get_mut(start..start + 8))
    {
        place.copy_from_slice(&(count as u64).to_le_bytes());
    }
}

/// Writes a map.
pub struct Map<'a> {
    encoder: &'a mut Encoder,
    start: usize,
    count: usize,
}

impl ser::SerializeMap for Map<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        self.count += 1;
        self.encoder.value(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.encoder.value(value)
    }

    fn end(self) -> Result<(), Error> {
        patch(self.encoder, Some(self.start), self.count);
        Ok(())
    }
}

macro_rules! compound {
    ($($kind:ident $method:ident $($name:ident)?),*) => {$(
        impl ser::$kind for &mut Encoder {
            type Ok = ();
            type Error = Error;

            fn $method<T: Serialize + ?Sized>(
                &mut self,
                $($name: &'static str,)?
                value: &T,
            ) -> Result<(), Error> {
                $(let _ = $name;)?
                self.value(value)
            }

            fn end(self) -> Result<(), Error> {
                Ok(())
            }
        }
    )*};
}

compound!(
    SerializeTuple serialize_element,
    SerializeTupleStruct serialize_field,
    SerializeTupleVariant serialize_field,
    SerializeStruct serialize_field name,
    SerializeStructVariant serialize_field name
);
