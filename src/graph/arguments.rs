//! What tasks are called with, encoded.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeStruct};

use crate::serialize::{Decoder, Frame};

/// Encoded arguments: opaque to all but the function's entry.
///
/// Those of most calls take few bytes and lie in place, so that a scheduler with a million tasks finds them where the
/// tasks are; all others are shared between those who clone them.
#[derive(Clone)]
pub struct Arguments(Encoded);

/// Bytes that lie in place: with them arguments are half of a cache line.
const FEW: usize = 30;

#[derive(Clone)]
enum Encoded {
    Few { length: u8, bytes: [u8; FEW] },
    Many(Arc<Parts>),
}

const _: () = assert!(size_of::<Arguments>() == 32);

#[derive(Deserialize)]
#[serde(rename = "Arguments")]
struct Parts {
    head: Frame,
    frames: Vec<Frame>,
}

impl Arguments {
    /// From the head of an encoding and the big buffers that belong to it.
    pub fn new(head: Bytes, frames: Vec<Frame>) -> Self {
        match Self::few(&head) {
            Some(few) if frames.is_empty() => few,
            _ => Self(Encoded::Many(Arc::new(Parts { head: Frame(head), frames }))),
        }
    }

    /// As [`Self::new`], of a head whose memory is used for something else afterwards.
    pub fn copied(head: &[u8], frames: Vec<Frame>) -> Self {
        match Self::few(head) {
            Some(few) if frames.is_empty() => few,
            _ => Self::new(Bytes::copy_from_slice(head), frames),
        }
    }

    fn few(head: &[u8]) -> Option<Self> {
        let mut bytes = [0; FEW];
        bytes.get_mut(..head.len())?.copy_from_slice(head);
        Some(Self(Encoded::Few { length: head.len() as u8, bytes }))
    }

    /// Whether they lie in place, and own no other memory.
    pub(crate) fn in_place(&self) -> bool {
        matches!(self.0, Encoded::Few { .. })
    }

    /// The head of the encoding.
    pub fn head(&self) -> &[u8] {
        match &self.0 {
            Encoded::Few { length, bytes } => &bytes[..usize::from(*length)],
            Encoded::Many(parts) => &parts.head.0,
        }
    }

    /// Big buffers within the arguments, untouched.
    pub fn frames(&self) -> &[Frame] {
        match &self.0 {
            Encoded::Few { .. } => &[],
            Encoded::Many(parts) => &parts.frames,
        }
    }

    /// Bytes of head and frames.
    pub fn nbytes(&self) -> u64 {
        self.head().len() as u64 + self.frames().iter().map(|frame| frame.0.len() as u64).sum::<u64>()
    }

    /// Reads what is encoded, where it lies.
    pub fn decoder(&self) -> Decoder<'_> {
        match &self.0 {
            Encoded::Few { .. } => Decoder::of_slice(self.head()),
            Encoded::Many(parts) => {
                Decoder::new(&parts.head.0, parts.frames.iter().map(|frame| frame.0.clone()).collect())
            }
        }
    }
}

impl Default for Arguments {
    fn default() -> Self {
        Self(Encoded::Few { length: 0, bytes: [0; FEW] })
    }
}

impl fmt::Debug for Arguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arguments({} B)", self.nbytes())
    }
}

/// Few bytes, written as a frame of so few is.
struct Short<'a>(&'a [u8]);

impl Serialize for Short<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl Serialize for Arguments {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut parts = serializer.serialize_struct("Arguments", 2)?;
        match &self.0 {
            Encoded::Few { .. } => parts.serialize_field("head", &Short(self.head()))?,
            Encoded::Many(shared) => parts.serialize_field("head", &shared.head)?,
        }
        parts.serialize_field("frames", self.frames())?;
        parts.end()
    }
}

impl<'de> Deserialize<'de> for Arguments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Parts { head, frames } = Parts::deserialize(deserializer)?;
        Ok(Self::new(head.0, frames))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serialize::{from_frames, to_frames};

    /// Whatever their size and however they travel: in our own format, or in one that knows no frames.
    #[test]
    fn arguments_arrive_as_they_were() {
        let buffers = [vec![], vec![Frame(vec![7; 100_000].into())]];
        for length in [0, 1, FEW - 1, FEW, FEW + 1, 1000, 100_000] {
            for frames in &buffers {
                let head: Vec<u8> = (0..length).map(|byte| byte as u8).collect();
                let shared = Arguments::new(head.clone().into(), frames.clone());
                for sent in [Arguments::copied(&head, frames.clone()), shared] {
                    let (bytes, buffers) = to_frames(&sent).unwrap();
                    let received: Arguments = from_frames(bytes, buffers).unwrap();
                    let json: Arguments =
                        serde_json::from_str(&serde_json::to_string(&sent).unwrap()).unwrap();
                    for arguments in [sent, received, json] {
                        assert_eq!((arguments.head(), arguments.frames()), (&head[..], &frames[..]));
                        let bytes = length + frames.iter().map(|frame| frame.0.len()).sum::<usize>();
                        assert_eq!(arguments.nbytes(), bytes as u64);
                    }
                }
            }
        }
    }

    #[test]
    fn few_arguments_keep_no_message() {
        let message = Bytes::from(vec![1; 1000]);
        let arguments = Arguments::new(message.slice(..FEW), vec![]);
        assert!(message.is_unique(), "they were copied out of it");
        let rest = Arguments::new(message.slice(..=FEW), vec![]);
        assert!(!message.is_unique(), "more are seen where they lie");
        drop((arguments, rest));
    }
}
