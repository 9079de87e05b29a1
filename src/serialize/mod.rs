//! stub
use bytes::Bytes;
use std::sync::Arc;
/// Frame
#[derive(Debug, Clone, Default)]
pub struct Frame(pub Bytes);
impl serde::Serialize for Frame { fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> { s.serialize_bytes(&self.0) } }
impl<'de> serde::Deserialize<'de> for Frame { fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> { Ok(Self(Vec::<u8>::deserialize(d)?.into())) } }
/// E
#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct Error;
/// s
pub fn to_frames_shared<T: serde::Serialize>(_: &Arc<T>) -> Result<(Bytes, Vec<Bytes>), Error> { Err(Error) }
/// s
pub fn from_frames<T: serde::de::DeserializeOwned>(_: Bytes, _: Vec<Bytes>) -> Result<T, Error> { Err(Error) }
/// s
pub fn nbytes<T: serde::Serialize>(_: &T) -> Result<u64, Error> { Err(Error) }
/// e
#[derive(Default)] pub struct Encoder;
/// e
pub struct Decoder;
impl Encoder {
/// e
pub fn encode<T: serde::Serialize>(&mut self, _: &T) -> Result<(), Error> { Err(Error) }
/// e
pub fn finish(self) -> (Bytes, Vec<Bytes>) { Default::default() } }
impl Decoder {
/// e
pub fn new(_: Bytes, _: Vec<Bytes>) -> Self { Decoder }
/// e
pub fn decode<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, Error> { Err(Error) } }
