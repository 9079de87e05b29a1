//! Frames that are smaller on their way than they are.
//!
//! The head of every message between processes ends with how many of its frames are compressed, 4 bytes,
//! and before that with each one's place (4 bytes) and its bytes as they were (8 bytes). The work is done
//! on the blocking pool, the samples' too, so that the I/O thread serves others meanwhile.

use std::{
    cell::Cell,
    io,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rankine_transport::{
    Address, Limits, Message,
    compression::{Compression, LinkRate, compress, decompress},
};
use tokio::task::spawn_blocking;

/// Bytes of an entry.
const ENTRY: usize = 12;

/// What a message whose frames are as they are ends with.
pub(super) const NOTHING_PACKED: u32 = 0;

thread_local! {
    static TRAFFIC: Cell<Traffic> = const { Cell::new(Traffic { sent: 0, saved: 0 }) };
}

/// Bytes of frames that this thread's links sent to other processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// As they were.
    pub(crate) sent: u64,
    /// Of which compression spared the links.
    pub(crate) saved: u64,
}

/// What was sent so far.
pub(crate) fn traffic() -> Traffic {
    TRAFFIC.get()
}

/// Messages that are sent without asking, at most, after one of which nothing was worth it.
const MOST_UNASKED: u32 = 64;

/// Compresses what goes over one link, as its policy and the link's rate say.
///
/// Asking costs some 100 µs a frame, so a link over which nothing is worth it is asked ever more rarely.
pub(super) struct Packer {
    policy: Compression,
    rate: LinkRate,
    /// Messages to send before the next is asked about.
    unasked: u32,
    /// How many there were last time.
    pause: u32,
}

impl Packer {
    pub(super) fn new(policy: Compression, peer: &Address) -> Self {
        // Within a machine memory is handed over: there is nothing to make smaller.
        let here = matches!(peer.scheme(), "inproc" | "shm");
        let policy = if here { Compression::Off } else { policy };
        Self { policy, rate: LinkRate::default(), unasked: 0, pause: 0 }
    }

    /// Compresses the frames for which that is worthwhile.
    pub(super) async fn pack(&mut self, message: Message) -> Message {
        let before = frame_bytes(&message);
        let mut traffic = TRAFFIC.get();
        traffic.sent += before;
        TRAFFIC.set(traffic);
        let (policy, rate) = (self.policy, self.rate);
        if !policy.asks(before, rate) {
            return message;
        }
        if self.unasked > 0 {
            self.unasked -= 1;
            return message;
        }
        let frames = message.frames.clone();
        let all = move || {
            let wanted = frames.iter().enumerate().filter(|(_, frame)| policy.wants(frame, rate));
            wanted.filter_map(|(i, frame)| Some((i, compress(frame)?))).collect()
        };
        // The pool refuses only while the process ends.
        let packed: Vec<(usize, Bytes)> = spawn_blocking(all).await.unwrap_or_default();
        if packed.is_empty() {
            if policy == Compression::Auto {
                self.pause = (2 * self.pause).clamp(1, MOST_UNASKED);
                self.unasked = self.pause;
            }
            return message;
        }
        self.pause = 0;
        let message = with_packed(message, packed);
        let mut traffic = TRAFFIC.get();
        traffic.saved += before.saturating_sub(frame_bytes(&message));
        TRAFFIC.set(traffic);
        message
    }

    /// The link took a message of so many bytes in so long.
    pub(super) fn sent(&mut self, bytes: u64, since: Instant) {
        let took: Duration = since.elapsed();
        self.rate.sent(bytes, took);
    }
}

fn frame_bytes(message: &Message) -> u64 {
    message.frames.iter().map(|frame| frame.len() as u64).sum()
}

fn with_packed(mut message: Message, packed: Vec<(usize, Bytes)>) -> Message {
    let mut head = message.head[..message.head.len() - 4].to_vec();
    for (place, bytes) in &packed {
        head.extend((*place as u32).to_le_bytes());
        head.extend((message.frames[*place].len() as u64).to_le_bytes());
        message.frames[*place] = bytes.clone();
    }
    head.extend((packed.len() as u32).to_le_bytes());
    message.head = head.into();
    message
}

/// What a received message says of its frames: the head without it, and which frames are packed.
///
/// # Errors
/// What is wrong with it.
fn read(message: &mut Message) -> Result<Vec<(usize, u64)>, &'static str> {
    let (head, count) = message.head.split_last_chunk::<4>().ok_or("a head without an end")?;
    let count = u32::from_le_bytes(*count) as usize;
    let length = head.len();
    if count == 0 {
        message.head.truncate(length);
        return Ok(Vec::new());
    }
    let start = count.checked_mul(ENTRY).and_then(|bytes| length.checked_sub(bytes));
    let start = start.ok_or("a table of compressed frames longer than its message")?;
    let mut packed: Vec<(usize, u64)> = Vec::with_capacity(count);
    for entry in head[start..].chunks_exact(ENTRY) {
        let (place, nbytes) = entry.split_at(4);
        let place = place.try_into().map_or(u32::MAX, u32::from_le_bytes) as usize;
        let nbytes = nbytes.try_into().map_or(u64::MAX, u64::from_le_bytes);
        let follows = packed.last().is_none_or(|(last, _)| place > *last);
        if !follows || place >= message.frames.len() {
            return Err("a table of compressed frames that are not there");
        }
        packed.push((place, nbytes));
    }
    let announced = packed.iter().try_fold(0u64, |sum, (_, nbytes)| sum.checked_add(*nbytes));
    if announced.is_none_or(|sum| sum > Limits::PEER.payload) {
        return Err("compressed frames beyond what is taken");
    }
    message.head.truncate(start);
    Ok(packed)
}

/// A message whose frames may still have to be decompressed.
pub(super) enum Unpacked {
    /// It is ready.
    Now(Message),
    /// It is being worked on.
    Soon(tokio::task::JoinHandle<io::Result<Message>>),
}

/// Undoes what a peer's [`Packer`] did.
///
/// # Errors
/// If the message is not what one makes.
pub(super) fn unpack(mut message: Message) -> io::Result<Unpacked> {
    if message.object.is_some() {
        return Ok(Unpacked::Now(message));
    }
    let packed = read(&mut message).map_err(|reason| io::Error::new(io::ErrorKind::InvalidData, reason))?;
    if packed.is_empty() {
        return Ok(Unpacked::Now(message));
    }
    Ok(Unpacked::Soon(spawn_blocking(move || {
        for (place, nbytes) in packed {
            message.frames[place] = decompress(&message.frames[place], nbytes)?;
        }
        Ok(message)
    })))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(frames: Vec<Bytes>) -> Message {
        Message::new([&b"what it means"[..], &NOTHING_PACKED.to_le_bytes()].concat(), frames)
    }

    async fn back(message: Message) -> Message {
        match unpack(message).unwrap() {
            Unpacked::Now(message) => message,
            Unpacked::Soon(work) => work.await.unwrap().unwrap(),
        }
    }

    #[tokio::test]
    async fn what_is_packed_is_smaller_and_comes_back_as_it_was() {
        let frames = vec![Bytes::from(vec![1; 50_000]), Bytes::from("small"), Bytes::from(vec![2; 1 << 20])];
        let peer: Address = "tcp://far:1".parse().unwrap();
        let before = traffic();
        let packed = Packer::new(Compression::Always, &peer).pack(message(frames.clone())).await;
        assert!(
            packed.frames[0].len() < 1000 && packed.frames[1] == frames[1] && packed.frames[2].len() < 1000
        );
        let after = traffic();
        assert_eq!(after.sent - before.sent, frame_bytes(&message(frames.clone())));
        assert_eq!(after.saved - before.saved, frame_bytes(&message(frames.clone())) - frame_bytes(&packed));
        let back = back(packed).await;
        assert_eq!((&back.head[..], back.frames), (&b"what it means"[..], frames));
    }

    #[tokio::test]
    async fn what_stays_on_the_machine_or_goes_fast_is_left_alone() {
        let frames = vec![Bytes::from(vec![1; 1 << 20])];
        let (near, far): (Address, Address) = ("shm://x".parse().unwrap(), "tcp://far:1".parse().unwrap());
        let untouched =
            async |packer: &mut Packer| packer.pack(message(frames.clone())).await.frames == frames;
        assert!(untouched(&mut Packer::new(Compression::Always, &near)).await);
        assert!(untouched(&mut Packer::new(Compression::Off, &far)).await);
        let mut packer = Packer::new(Compression::Auto, &far);
        assert!(untouched(&mut packer).await, "the link's rate is not known yet");
        packer.sent(1 << 20, Instant::now() - Duration::from_secs(10));
        assert!(!untouched(&mut packer).await, "100 kB/s");
        for _ in 0..30 {
            packer.sent(1 << 40, Instant::now());
        }
        assert!(untouched(&mut packer).await);
        assert_eq!(back(packer.pack(message(frames.clone())).await).await.frames, frames);
    }

    #[tokio::test]
    async fn where_nothing_is_worth_it_it_is_asked_ever_more_rarely() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        let noise: Vec<u8> = (0..50_000).map(|_| random()).collect();
        let mut packer = Packer::new(Compression::Auto, &"tcp://far:1".parse().unwrap());
        packer.sent(1 << 20, Instant::now() - Duration::from_secs(10));
        let mut asked = 0;
        for _ in 0..1000 {
            asked += u32::from(packer.unasked == 0);
            let sent = packer.pack(message(vec![noise.clone().into()])).await;
            assert_eq!(sent.frames[0], noise);
        }
        assert!((15..25).contains(&asked), "{asked} of 1000 messages");
        // What is worth it is found, at the latest after the longest pause.
        let zeros = || message(vec![Bytes::from(vec![0; 50_000])]);
        let mut sent = 0;
        while packer.pack(zeros()).await.frames[0].len() == 50_000 {
            sent += 1;
            assert!(sent <= MOST_UNASKED);
        }
        assert!(packer.pack(zeros()).await.frames[0].len() < 50_000, "and the next is asked about at once");
    }

    #[tokio::test]
    async fn a_frame_that_is_not_what_was_announced_is_an_error() {
        let mut packed = with_packed(message(vec![vec![0; 50_000].into()]), vec![(0, "nonsense".into())]);
        let Ok(Unpacked::Soon(work)) = unpack(packed) else { panic!("it is packed") };
        assert!(work.await.unwrap().is_err());
        packed = message(vec![]);
        packed.head = Bytes::from_static(b"\x01\0\0");
        assert!(unpack(packed).is_err());
    }

    proptest! {
        #[test]
        fn any_table_is_read_or_refused(head in prop::collection::vec(any::<u8>(), 0..60), count in 0..5u32, frames in 0..4usize) {
            let mut message = Message::new([&head[..], &count.to_le_bytes()].concat(), vec![Bytes::new(); frames]);
            if let Ok(packed) = read(&mut message) {
                prop_assert_eq!(packed.len(), count as usize);
                prop_assert!(packed.iter().all(|(place, nbytes)| *place < frames && *nbytes <= Limits::PEER.payload));
                prop_assert_eq!(message.head.len(), head.len() - ENTRY * packed.len());
            }
        }
    }
}
