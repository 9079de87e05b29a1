//! No copies of big frames, and no registration that is not true.

use rankine_transport::AlignedBuffer;

use super::*;
use crate::{
    region::{self, Access},
    registrations::Registrations,
};

fn block(length: usize, seed: usize) -> Bytes {
    let mut buffer = AlignedBuffer::new(length as u64).unwrap();
    buffer.extend(&pattern(length, seed));
    buffer.freeze()
}

/// What the peer reads is the frame itself, and it is read to where it is handed out.
#[tokio::test]
async fn big_frames_are_read_from_where_they_lie_to_where_they_stay() {
    let [mut ours, mut theirs] = pair().await;
    let (sending, receiving) = (inside(&ours), inside(&theirs));
    let frames = [pattern(wire::RENDEZVOUS as usize, 0), pattern(3 << 20, 1), block(5 << 20, 2)];
    let send = async { ours.sender.send(Message::new("", frames.to_vec())).await.unwrap() };
    let ((), got) = tokio::join!(send, expect(&mut theirs));
    let places = |frames: &[Bytes]| frames.iter().map(|frame| frame.as_ptr() as usize).collect::<Vec<_>>();
    assert_eq!(sending.lock().outgoing.all_lent, places(&frames));
    assert_eq!(receiving.lock().incoming.all_landings, places(&got.frames));
    assert!(got.frames == frames);
}

/// A frame is let go once the peer has it, and not before.
#[tokio::test]
async fn a_frame_is_held_until_it_is_read() {
    let [mut ours, mut theirs] = pair().await;
    let owner = Arc::new(vec![7u8; 1 << 20]);
    struct Owner(Arc<Vec<u8>>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let frame = Bytes::from_owner(Owner(owner.clone()));
    ours.sender.start_send(Message::new("", vec![frame])).unwrap();
    for _ in 0..10 {
        let _ = std::future::poll_fn(|cx| Poll::Ready(ours.sender.poll_flush(cx))).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(Arc::strong_count(&owner), 2, "nobody has read it");
    let flush = async { std::future::poll_fn(|cx| ours.sender.poll_flush(cx)).await.unwrap() };
    let ((), got) = tokio::join!(flush, expect(&mut theirs));
    assert_eq!((Arc::strong_count(&owner), got.frames[0].len()), (1, 1 << 20));
}

/// Memory that comes again at the same addresses, with other content, is never taken for what was there before.
#[tokio::test]
async fn memory_that_was_given_back_is_registered_anew() {
    let [mut ours, mut theirs] = pair().await;
    for seed in 0..60 {
        // Mapped and unmapped each time, on most systems at the same place.
        let frame = pattern((1 << 20) + 8 * seed, seed);
        let send = async { ours.sender.send(Message::new("", vec![frame.clone()])).await.unwrap() };
        let ((), got) = tokio::join!(send, expect(&mut theirs));
        assert!(got.frames[0] == frame, "{seed}");
    }
}

fn registrations(bound: u64) -> Registrations {
    let choice = Verbs { registered_bytes: Some(bound), ..verbs() };
    Registrations::new(Arc::new(device::Device::open(&choice).unwrap()), bound)
}

#[test]
fn blocks_stay_registered_and_other_memory_does_not() {
    let registrations = registrations(64 << 20);
    let (kept, foreign) = (block(1 << 20, 0), pattern(1 << 20, 0));
    let first = registrations.cover(&region::addresses(&kept), Access::Lend).unwrap();
    let again = registrations.cover(&region::addresses(&kept[100..]), Access::Both).unwrap();
    assert!(Arc::ptr_eq(&first, &again));
    registrations.cover(&region::addresses(&foreign), Access::Lend).unwrap();
    assert_eq!(registrations.kept(), (1, 1 << 20));
}

#[test]
fn what_stays_registered_has_a_bound_and_the_oldest_goes_first() {
    let registrations = registrations(250 << 10);
    // Of 64 to 80 KiB, as blocks of about their size are used again.
    let blocks: Vec<Bytes> = (0..4).map(|i| block(64 << 10, i)).collect();
    let cover = |i: usize| registrations.cover(&region::addresses(&blocks[i]), Access::Lend).unwrap();
    let first = cover(0);
    cover(1);
    cover(2);
    assert!(Arc::ptr_eq(&first, &cover(0)), "it was kept");
    cover(3);
    let (count, bytes) = registrations.kept();
    assert!(count == 3 && bytes <= 250 << 10, "{count} {bytes}");
    assert!(Arc::ptr_eq(&first, &cover(0)), "used later than the one that went");
    // Too big to be kept at all.
    let big = block(300 << 10, 9);
    registrations.cover(&region::addresses(&big), Access::Lend).unwrap();
    assert_eq!(registrations.kept().0, 3);
}

#[test]
fn a_block_that_is_given_back_is_no_longer_registered() {
    let registrations = registrations(u64::MAX);
    // More than is kept of blocks for later: a sixteenth of this machine's memory.
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total: usize = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    let length = total * 1024 / 16 + (16 << 20);
    let mut buffer = AlignedBuffer::new(length as u64).unwrap();
    buffer.extend(b"some");
    let frame = buffer.freeze();
    registrations.cover(&region::addresses(&frame), Access::Lend).unwrap();
    assert_eq!(registrations.kept().0, 1);
    drop(frame);
    assert_eq!(registrations.kept(), (0, 0));
}

/// Segments are the device's or this process's, never both's.
#[test]
fn a_segment_is_not_seen_while_the_device_has_it() {
    let device = Arc::new(device::Device::open(&verbs()).unwrap());
    let shape = Shape { receives: 2, sends: 1, signals: 1, transfers: 1, segment: 64 };
    let mut pair = queue_pair::QueuePair::new(&device, None, 0, shape).unwrap();
    assert!(pair.received(0, 64).is_empty() && pair.received(9, 64).is_empty());
    assert!(pair.post_receive(0).is_err() && pair.post_receive(9).is_err());
    assert_eq!(pair.segment().map(|(_, bytes)| bytes.len()), Some(64));
}
