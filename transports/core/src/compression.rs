//! Whether a frame is compressed on its way: only where it arrives earlier for it.
//!
//! The heuristic is Dask's (`distributed.protocol.compression`), with the link's speed taken into account:
//! frames below 10 kB never; of others five pieces of 10 kB are compressed to see how much smaller they
//! get, and how fast. A frame of n bytes is sent compressed if
//!
//! ```text
//! n / compressing + ratio * n / link + n / decompressing  <  n / link
//! ```
//!
//! where the link's rate is what earlier messages went at: over a fabric that is faster than zstd nothing
//! is ever compressed, and nothing before the link's rate is known. Only the samples are touched to decide.

use std::{
    fmt, io,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::AlignedBuffer;

/// Frames of fewer bytes are sent as they are.
const SMALLEST: usize = 10_000;
/// Bytes of a sample.
const SAMPLE: usize = 10_000;
/// Samples of a frame, evenly spread.
const SAMPLES: usize = 5;
/// What does not get smaller than this part of itself is sent as it is.
const WORTHWHILE: f64 = 0.9;
/// zstd's fastest regular level.
const LEVEL: i32 = 1;
/// zstd decompresses about so many times as fast as it compresses.
const DECOMPRESSING: f64 = 3.0;
/// Messages of fewer bytes tell little of a link's rate.
const TELLING: u64 = 1 << 20;

/// Whether frames are compressed on their way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Never.
    Off,
    /// Where they arrive earlier for it.
    #[default]
    Auto,
    /// Wherever they get smaller, however fast the link.
    Always,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Auto => "auto",
            Self::Always => "always",
        })
    }
}

/// How fast a link is, from what was sent over it: later messages count more.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkRate {
    bytes: f64,
    seconds: f64,
}

impl LinkRate {
    /// A message of so many bytes took so long until the link had it all.
    pub fn sent(&mut self, bytes: u64, took: Duration) {
        if bytes >= TELLING {
            self.bytes = self.bytes / 2.0 + bytes as f64;
            self.seconds = self.seconds / 2.0 + took.as_secs_f64().max(1e-9);
        }
    }

    /// Bytes a second, once something is known.
    pub fn bytes_per_second(&self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.bytes / self.seconds)
    }
}

/// What samples of a frame tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Promise {
    /// Compressed bytes for each byte.
    pub ratio: f64,
    /// Bytes compressed in a second.
    pub compressing: f64,
}

impl Promise {
    /// Compresses samples of a frame; `None` where it is too small to ask.
    pub fn of(frame: &[u8]) -> Option<Self> {
        if frame.len() < SMALLEST {
            return None;
        }
        let (mut before, mut after) = (0, 0);
        let start = Instant::now();
        let samples = SAMPLES.min(frame.len() / SAMPLE);
        for i in 0..samples {
            let at = (frame.len() - SAMPLE) / samples.max(1) * i;
            let sample = &frame[at..at + SAMPLE];
            before += sample.len();
            after += zstd::bulk::compress(sample, LEVEL).map_or(sample.len(), |bytes| bytes.len());
        }
        let seconds = start.elapsed().as_secs_f64().max(1e-9);
        Some(Self { ratio: after as f64 / before as f64, compressing: before as f64 / seconds })
    }

    /// Whether a frame arrives earlier compressed over a link of that rate.
    pub fn is_faster_over(&self, bytes_per_second: f64) -> bool {
        let working = 1.0 / self.compressing + 1.0 / (DECOMPRESSING * self.compressing);
        self.ratio < WORTHWHILE && working + self.ratio / bytes_per_second < 1.0 / bytes_per_second
    }
}

impl Compression {
    /// Whether it is worth asking about frames of so many bytes together for a link.
    pub fn asks(self, nbytes: u64, link: LinkRate) -> bool {
        let known = self == Self::Always || link.bytes_per_second().is_some();
        self != Self::Off && known && nbytes >= SMALLEST as u64
    }

    /// Whether a frame is to be compressed for a link.
    pub fn wants(self, frame: &[u8], link: LinkRate) -> bool {
        match (self, link.bytes_per_second()) {
            (Self::Off, _) | (Self::Auto, None) => false,
            (Self::Always, _) => Promise::of(frame).is_some_and(|promise| promise.ratio < WORTHWHILE),
            (Self::Auto, Some(rate)) => {
                Promise::of(frame).is_some_and(|promise| promise.is_faster_over(rate))
            }
        }
    }
}

/// A frame compressed, `None` where that does not make it worthwhile smaller.
pub fn compress(frame: &[u8]) -> Option<Bytes> {
    let compressed = zstd::bulk::compress(frame, LEVEL).ok()?;
    ((compressed.len() as f64) < WORTHWHILE * frame.len() as f64).then(|| compressed.into())
}

/// A frame of `length` bytes from what [`compress`] made of it.
///
/// # Errors
/// If it is not that, or there is no memory for it.
pub fn decompress(compressed: &[u8], length: u64) -> io::Result<Bytes> {
    let mut buffer = AlignedBuffer::new(length)?;
    let written = zstd::bulk::decompress_to_buffer(compressed, buffer.zeroed())?;
    if written as u64 != length {
        let reason = format!("a compressed frame of {written} bytes, announced as {length}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    Ok(buffer.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: f64 = (1u64 << 30) as f64;

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn what_was_compressed_comes_back_aligned() {
        for length in [10_000usize, 123_457, 5 << 20] {
            let frame: Vec<u8> = (0..length).map(|i| (i / 100) as u8).collect();
            let compressed = compress(&frame).unwrap();
            assert!(compressed.len() < length / 10);
            let back = decompress(&compressed, length as u64).unwrap();
            assert_eq!(back, frame);
            assert_eq!(back.as_ptr().align_offset(64), 0);
        }
        assert!(compress(&noise(100_000)).is_none());
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        let compressed = compress(&[7; 50_000]).unwrap();
        for (bytes, length) in
            [(&compressed[..], 49_999), (&compressed, 50_001), (&compressed[..9], 50_000), (b"nothing", 10)]
        {
            assert!(decompress(bytes, length).is_err(), "{length}");
        }
        assert!(decompress(&compressed, u64::MAX).is_err());
    }

    #[test]
    fn samples_tell_what_a_frame_promises() {
        assert_eq!(Promise::of(&[0; 9_999]), None);
        assert!(Promise::of(&[0; 10_000]).unwrap().ratio < 0.01);
        assert!(Promise::of(&noise(1 << 20)).unwrap().ratio > 0.99);
    }

    #[test]
    fn fast_links_are_left_alone_and_slow_ones_spared() {
        let promise = Promise { ratio: 0.5, compressing: GIB };
        assert!(!promise.is_faster_over(10.0 * GIB), "faster than zstd");
        assert!(!promise.is_faster_over(0.5 * GIB), "half of the bytes do not make up for the work");
        assert!(promise.is_faster_over(0.1 * GIB));
        assert!(!Promise { ratio: 0.95, ..promise }.is_faster_over(1000.0), "not worth the trouble");
    }

    #[test]
    fn the_policy_decides_with_what_is_known_of_the_link() {
        let (zeros, mut link) = (vec![0; 1 << 20], LinkRate::default());
        assert!(!Compression::Auto.wants(&zeros, link), "nothing is known yet");
        assert!(!Compression::Auto.asks(1 << 20, link) && Compression::Always.asks(1 << 20, link));
        assert!(Compression::Always.wants(&zeros, link) && !Compression::Off.wants(&zeros, link));
        assert!(!Compression::Always.wants(&noise(1 << 20), link));
        link.sent(1000, Duration::from_secs(9));
        assert_eq!(link.bytes_per_second(), None, "a small message tells nothing");
        link.sent(10 << 20, Duration::from_secs(10));
        assert!(Compression::Auto.wants(&zeros, link), "1 MiB/s");
        assert!(Compression::Auto.asks(10_000, link) && !Compression::Auto.asks(9_999, link));
        for _ in 0..20 {
            link.sent(1 << 30, Duration::from_millis(1));
        }
        assert!(link.bytes_per_second().unwrap() > 900.0 * GIB, "what is later counts more");
        assert!(!Compression::Auto.wants(&zeros, link));
    }
}
