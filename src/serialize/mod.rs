//! stub
use bytes::Bytes;
use std::sync::Arc;
/// Frame
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Frame(#[serde(skip)] pub Bytes);
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
