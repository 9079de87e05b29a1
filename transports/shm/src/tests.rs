use std::{
    io::{IoSlice, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::net,
    time::Duration,
};

use bytes::Bytes;
use proptest::prelude::*;
use rankine_transport::{AlignedBuffer, Limits, Message, Receiver, Sender, batch::Heads};
use rustix::{
    fs::{FallocateFlags, MemfdFlags, SealFlags},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags},
};
use tokio::time::{sleep, timeout};

use super::*;
use crate::{
    ledger::{RECORD, Record},
    receiver::ShmReceiver,
    segment::{Refused, Segment},
    sender::ShmSender,
    wire::{BLOCK, Block, INLINE, Slot, batch, batched},
};

rankine_transport::conformance_suite!(Shm, "shm://*");

/// Two ends over sockets without names: what the first sends the second receives, and the other way round.
fn ends() -> [(ShmSender, ShmReceiver); 2] {
    segment::supply_blocks();
    let ((a, b), (x, y)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    let peer: Address = "shm://test/peer".parse().unwrap();
    let mut ends = [(a, x), (b, y)].map(|(stream, control)| listener::halves(stream, control, &peer));
    for (_, receiver) in &mut ends {
        receiver.set_limits(Limits::PEER);
    }
    ends
}

async fn send(sender: &mut ShmSender, message: Message) -> Result<()> {
    (sender as &mut dyn Sender).send(message).await
}

async fn recv(receiver: &mut ShmReceiver) -> Result<Option<Message>> {
    (receiver as &mut dyn Receiver).recv().await
}

/// A frame from one end to the other, of which the sender keeps nothing.
async fn pass(sender: &mut ShmSender, receiver: &mut ShmReceiver, frame: Bytes) -> Bytes {
    let (sent, got) = tokio::join!(send(sender, Message::new("", vec![frame])), recv(receiver));
    sent.unwrap();
    got.unwrap().unwrap().frames.remove(0)
}

/// A frame that lies in a segment.
fn chunk(length: usize, seed: u8) -> Bytes {
    segment::supply_blocks();
    let mut buffer = AlignedBuffer::new(length as u64).unwrap();
    for i in 0..length.div_ceil(4096) {
        buffer.extend(&[i as u8 ^ seed; 4096]);
    }
    buffer.freeze()
}

/// The file that memory is mapped from, as the system has it, and where in it: what is the same there is the
/// same page of memory.
fn page(bytes: &[u8]) -> Option<(u64, u64)> {
    let place = bytes.as_ptr() as u64;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = fields[0].split_once('-')?;
        let [start, end, offset] =
            [start, end, fields[2]].map(|field| u64::from_str_radix(field, 16).unwrap());
        let inode = fields[4].parse().unwrap();
        ((start..end).contains(&place) && inode != 0).then(|| (inode, place - start + offset))
    })
}

/// Waits until something that others do has come about.
async fn eventually(what: impl Fn() -> bool) {
    timeout(Duration::from_secs(10), async {
        while !what() {
            sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .expect("it comes about");
}

#[tokio::test]
async fn the_receiver_reads_the_very_pages_that_the_sender_wrote() {
    let [(mut ours, _a), (_b, mut theirs)] = ends();
    for frame in
        [chunk(1 << 20, 1), chunk(3 << 20, 2).slice(64 * 1000..), chunk(300 << 10, 3).slice(..40_000)]
    {
        let got = pass(&mut ours, &mut theirs, frame.clone()).await;
        assert!(page(&frame).is_some() && page(&frame) == page(&got));
        assert!(frame.as_ptr() != got.as_ptr() && frame == got);
    }
}

#[tokio::test]
async fn what_is_borrowed_is_lent_on_as_it_lies() {
    let [(mut ours, _a), (_b, mut theirs)] = ends();
    let [(mut next, _c), (_d, mut last)] = ends();
    let frame = chunk(2 << 20, 4);
    let (here, expected) = (page(&frame), frame.to_vec());
    let there = pass(&mut ours, &mut theirs, frame).await;
    let beyond = pass(&mut next, &mut last, there).await;
    assert!(page(&beyond) == here && beyond == expected);
}

/// A copy in a segment, of which the borrower reads the pages; small or crooked frames arrive aligned.
#[tokio::test]
async fn what_lies_in_no_segment_is_copied_once() {
    let [(mut ours, _a), (_b, mut theirs)] = ends();
    let vector = Bytes::from((0..3 << 20).map(|i| (i % 251) as u8).collect::<Vec<u8>>());
    let got = pass(&mut ours, &mut theirs, vector.clone()).await;
    assert!(page(&vector).is_none() && page(&got).is_some() && got == vector);
    let lies_in = Segment::holding(&got).unwrap().0;
    assert!(
        lies_in.len() < (3 << 20) + (1 << 20) && lent() >= 3 << 20,
        "the receiver made no memory of its own"
    );
    let crooked = chunk(1 << 20, 5).slice(3..);
    let got = pass(&mut ours, &mut theirs, crooked.clone()).await;
    assert!(got.as_ptr().align_offset(64) == 0 && got == crooked);
}

/// The size is this test's own, so that no other takes or leaves such a block.
#[tokio::test]
async fn memory_is_used_again_once_it_is_returned_and_not_before() {
    let [(mut ours, _a), (_b, mut theirs)] = ends();
    const SIZE: usize = 11 << 20;
    let first = chunk(SIZE, 6);
    let place = page(&first).unwrap().0;
    let lent = pass(&mut ours, &mut theirs, first).await;
    let beside = chunk(SIZE, 7);
    assert_ne!(page(&beside).unwrap().0, place, "it is lent");
    let part = lent.slice(5..10);
    drop(lent);
    sleep(Duration::from_millis(50)).await;
    let beside_too = chunk(SIZE, 8);
    assert_ne!(page(&beside_too).unwrap().0, place, "a part of it is lent");
    drop(part);
    eventually(|| page(&chunk(SIZE, 9)).unwrap().0 == place).await;
}

#[tokio::test]
async fn memory_that_is_lent_when_the_connection_ends_is_never_written_to_again() {
    const SIZE: usize = 13 << 20;
    for who_goes in 0..2 {
        let [(mut ours, a), (b, mut theirs)] = ends();
        let first = chunk(SIZE, 10);
        let (place, expected) = (page(&first).unwrap().0, first.to_vec());
        let lent = pass(&mut ours, &mut theirs, first.clone()).await;
        if who_goes == 0 {
            drop((ours, a));
            drop((b, theirs));
        } else {
            drop((b, theirs));
            eventually(|| Segment::holding(&first).unwrap().0.is_tainted()).await;
            drop((ours, a));
        }
        drop(first);
        for seed in 11..20 {
            assert_ne!(page(&chunk(SIZE, seed)).unwrap().0, place);
        }
        assert_eq!(lent, expected);
    }
}

/// A owns, B borrows from it and lends on to C, of whom B then hears no more; A must not write there.
#[tokio::test]
async fn memory_that_was_lent_on_and_never_returned_is_not_used_again_by_its_owner() {
    const SIZE: usize = 15 << 20;
    let [(mut a, _from_b), (_to_a, mut b)] = ends();
    let [(mut b_to_c, from_c), (_to_b, mut c)] = ends();
    let owned = chunk(SIZE, 21);
    let (place, expected) = (page(&owned).unwrap().0, owned.to_vec());
    let borrowed = pass(&mut a, &mut b, owned.clone()).await;
    let lent_on = pass(&mut b_to_c, &mut c, borrowed).await;
    drop((b_to_c, from_c));
    eventually(|| Segment::holding(&owned).unwrap().0.is_tainted()).await;
    drop(owned);
    for seed in 22..30 {
        assert_ne!(page(&chunk(SIZE, seed)).unwrap().0, place);
    }
    assert_eq!(lent_on, expected);
}

struct Whole(std::sync::Arc<Segment>);

impl AsRef<[u8]> for Whole {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: nobody writes to it.
        unsafe { self.0.bytes(0..self.0.len()) }
    }
}

#[tokio::test]
async fn what_the_sender_gives_back_to_the_system_the_receiver_unmaps() {
    let [(mut ours, _a), (_b, mut theirs)] = ends();
    // It is not a block, of which some are kept for later.
    let whole = Whole(Segment::create(1 << 20).unwrap().unwrap());
    let got = pass(&mut ours, &mut theirs, Bytes::from_owner(whole)).await;
    let inode = page(&got).unwrap().0;
    let mapped =
        || std::fs::read_to_string("/proc/self/maps").unwrap().matches(&format!(" {inode} ")).count();
    assert_eq!(mapped(), 2);
    drop(got);
    eventually(|| mapped() == 0).await;
}

#[tokio::test]
async fn segments_that_are_not_lent_from_any_more_are_mapped_in_a_bounded_number() {
    let [(mut ours, _a), (_b, mut theirs)] = ends();
    let frames: Vec<Bytes> = (0..400).map(|i| chunk(256 << 10, i as u8)).collect();
    let pages: Vec<u64> = frames.iter().map(|frame| page(frame).unwrap().0).collect();
    for round in 0..2 {
        for frame in &frames {
            assert_eq!(pass(&mut ours, &mut theirs, frame.clone()).await, frame);
        }
        let twice = || {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            pages.iter().filter(|inode| maps.matches(&format!(" {inode} ")).count() == 2).count()
        };
        eventually(|| twice() <= 257).await;
        assert!(twice() > 100, "round {round}: some are kept");
    }
}

#[tokio::test]
async fn lent_frames_that_nobody_reads_are_bounded() {
    let [(mut ours, _a), (_b, mut theirs)] = ends();
    let frame = chunk(1 << 20, 41);
    let mut taken = 0;
    while let Ok(ready) =
        timeout(Duration::from_millis(200), std::future::poll_fn(|cx| ours.poll_ready(cx))).await
    {
        ready.unwrap();
        ours.start_send(Message::new("", vec![frame.clone()])).unwrap();
        taken += 1;
        assert!(taken < 1000);
    }
    assert!(taken >= 64);
    for _ in 0..16 {
        assert_eq!(recv(&mut theirs).await.unwrap().unwrap().frames[0], frame);
    }
    timeout(Duration::from_secs(5), std::future::poll_fn(|cx| ours.poll_ready(cx))).await.unwrap().unwrap();
}

/// Segments sent by a message of many frames go in several lots of descriptors.
#[tokio::test]
async fn hundreds_of_segments_in_one_message_arrive_whole() {
    let [(mut ours, _a), (_b, mut theirs)] = ends();
    let frames: Vec<Bytes> = (0..300)
        .map(|i| if i % 3 == 0 { Bytes::from(vec![i as u8; 100]) } else { chunk(256 << 10, i as u8) })
        .collect();
    let (sent, got) = tokio::join!(send(&mut ours, Message::new("many", frames.clone())), recv(&mut theirs));
    sent.unwrap();
    assert_eq!(got.unwrap().unwrap().frames, frames);
}

#[test]
fn a_segment_is_its_makers_to_write_and_nobodys_to_cut_short() {
    let segment = Segment::create(1 << 20).unwrap().unwrap();
    let file = segment.file().unwrap();
    assert!(rustix::fs::ftruncate(file, 4096).is_err() && rustix::fs::ftruncate(file, 8 << 20).is_err());
    assert!(rustix::io::write(file, b"x").is_err());
    let file = file.try_clone_to_owned().unwrap();
    assert!(memmap2::MmapOptions::new().map_raw(&file).is_err());
    Segment::adopt(file).unwrap();
}

// What others send with bad intent.

/// A peer that says what it likes.
struct Raw {
    stream: net::UnixStream,
    control: net::UnixStream,
    receiver: ShmReceiver,
    sender: ShmSender,
}

fn raw() -> Raw {
    segment::supply_blocks();
    let ((a, stream), (x, control)) = (net::UnixStream::pair().unwrap(), net::UnixStream::pair().unwrap());
    let [a, x] = [a, x].map(|socket| {
        socket.set_nonblocking(true).unwrap();
        UnixStream::from_std(socket).unwrap()
    });
    let (sender, mut receiver) = listener::halves(a, x, &"shm://test/stranger".parse().unwrap());
    receiver.set_limits(Limits::PEER);
    Raw { stream, control, receiver, sender }
}

/// Sends bytes and descriptors, however many.
fn push(stream: &net::UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors)));
    let sent =
        rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
    assert_eq!(sent, bytes.len());
}

fn raw_block(kind: u8, numbers: [u64; 4]) -> Vec<u8> {
    let mut block = Block::Close.bytes().to_vec();
    block[4] = kind;
    for (i, number) in numbers.iter().enumerate() {
        block[8 + 8 * i..16 + 8 * i].copy_from_slice(&number.to_le_bytes());
    }
    block
}

/// A message of one lent frame.
fn loan(segment: u64, offset: u64, length: u64) -> Bytes {
    wire::start(Bytes::new(), &[Slot::Lent { length, segment, offset }])[0].clone()
}

fn memory(flags: MemfdFlags, length: u64, allocated: bool, seals: SealFlags) -> OwnedFd {
    let file = rustix::fs::memfd_create("hostile", flags | MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, length).unwrap();
    if allocated {
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, length).unwrap();
    }
    if !seals.is_empty() {
        rustix::fs::fcntl_add_seals(&file, seals).unwrap();
    }
    file
}

fn good() -> OwnedFd {
    memory(MemfdFlags::ALLOW_SEALING, 1 << 20, true, SealFlags::SHRINK)
}

async fn assert_refused(mut raw: Raw, what: &str) {
    let received = timeout(Duration::from_secs(5), recv(&mut raw.receiver)).await;
    let received = received.unwrap_or_else(|_| panic!("{what}: in bounded time"));
    assert!(matches!(received, Err(Error::Protocol { .. })), "{what}: {received:?}");
    // And the direction stays refused.
    assert!(recv(&mut raw.receiver).await.is_err());
}

#[tokio::test]
async fn hostile_numbers_allocate_nothing() {
    for (kind, numbers) in [
        (0, [1 << 63, 0, 0, 0]),
        (0, [0, 1 << 63, 0, 0]),
        (0, [0, 1, 1 << 63, 0]),
        (0, [0, 1, 1, 2]),
        (0, [0, 1, 1, 1 << 63]),
        (0, [u64::MAX; 4]),
        (2, [u64::MAX; 4]),
        (2, [1 << 40, 2, 0, 0]),
        (2, [100, 0, 0, 0]),
        (2, [100, 2, 1 << 63, 0]),
        (2, [100, 2, 101, 0]),
        (2, [100, 1, 150, 0]),
        (3, [0, 1 << 63, 0, 0]),
        (3, [0, 65, 0, 0]),
        (3, [u64::MAX, 1, 0, 0]),
        (4, [0; 4]),
        (5, [0; 4]),
    ] {
        let raw = raw();
        push(&raw.stream, &raw_block(kind, numbers), &[]);
        assert_refused(raw, &format!("{kind} {numbers:?}")).await;
    }
    let raw = raw();
    push(&raw.stream, &[b'x'; BLOCK], &[]);
    assert_refused(raw, "another protocol").await;
}

#[tokio::test]
async fn loans_that_lie_nowhere_are_refused() {
    for (what, segment, offset, length) in [
        ("unknown", 1, 0, 1),
        ("unknown", u64::MAX, 0, 1),
        ("too long", 0, 0, (1 << 20) + 1),
        ("far too long", 0, 0, 1 << 43),
        ("beyond", 0, 1 << 20, 1),
        ("around", 0, u64::MAX, 2),
        ("around", 0, u64::MAX - 1, 1),
    ] {
        let raw = raw();
        push(&raw.stream, &Block::Segments { first: 0, count: 1 }.bytes(), &[good().as_fd()]);
        push(&raw.stream, &loan(segment, offset, length), &[]);
        assert_refused(raw, what).await;
    }
    let mut raw = raw();
    push(&raw.stream, &Block::Segments { first: 0, count: 1 }.bytes(), &[good().as_fd()]);
    push(&raw.stream, &loan(0, (1 << 20) - 10, 10), &[]);
    assert_eq!(recv(&mut raw.receiver).await.unwrap().unwrap().frames, [vec![0; 10]]);
    push(&raw.stream, &Block::Segments { first: 7, count: 1 }.bytes(), &[good().as_fd()]);
    assert_refused(raw, "a number out of turn").await;
}

#[tokio::test]
async fn descriptors_that_are_no_safe_segments_are_refused() {
    let sealed = MemfdFlags::ALLOW_SEALING;
    let plain = || -> OwnedFd { tempfile_like().into() };
    let pipe = || rustix::pipe::pipe().unwrap().1;
    let cases: Vec<(&str, OwnedFd)> = vec![
        ("a pipe", pipe()),
        ("a plain file", plain()),
        ("a socket", net::UnixStream::pair().unwrap().0.into()),
        ("unsealed", memory(sealed, 1 << 20, true, SealFlags::empty())),
        ("never sealed", memory(MemfdFlags::empty(), 1 << 20, true, SealFlags::empty())),
        ("sealed against growing alone", memory(sealed, 1 << 20, true, SealFlags::GROW)),
        ("without pages", memory(sealed, 1 << 20, false, SealFlags::SHRINK)),
        ("huge and without pages", memory(sealed, 1 << 60, false, SealFlags::SHRINK)),
        ("empty", memory(sealed, 0, false, SealFlags::SHRINK)),
    ];
    for (what, file) in cases {
        let raw = raw();
        push(&raw.stream, &Block::Segments { first: 0, count: 1 }.bytes(), &[file.as_fd()]);
        push(&raw.stream, &loan(0, 0, 10), &[]);
        assert_refused(raw, what).await;
        assert!(matches!(Segment::adopt(file), Err(Refused::Unfit(_))), "{what}");
    }
}

/// A file with a name, deleted.
fn tempfile_like() -> std::fs::File {
    let path =
        std::env::temp_dir().join(format!("rankine-shm-{}-{:x}", std::process::id(), rand::random::<u64>()));
    let file = std::fs::File::create_new(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file.set_len(1 << 20).unwrap();
    file
}

#[tokio::test]
async fn descriptors_missing_or_not_asked_for_are_refused_and_closed() {
    let blocks = [
        ("too few", Block::Segments { first: 0, count: 3 }.bytes(), 2),
        ("none", Block::Segments { first: 0, count: 1 }.bytes(), 0),
        ("too many", Block::Segments { first: 0, count: 1 }.bytes(), 2),
        ("not asked for", wire::start(Bytes::from("head"), &[])[0].clone(), 3),
        ("more than travel at once", Block::Segments { first: 0, count: 64 }.bytes(), 200),
    ];
    for (what, block, count) in blocks {
        let mut raw = raw();
        let (mut reader, writer) = std::io::pipe().unwrap();
        // Good ones first, so that it is not those that are refused.
        let mut files: Vec<OwnedFd> = Vec::new();
        for i in 0..count {
            files.push(if i == count - 1 && count != 2 {
                writer.try_clone().unwrap().into()
            } else {
                good()
            });
        }
        if count == 2 {
            files[1] = good();
        }
        let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        push(&raw.stream, &block, &borrowed);
        drop((files, writer));
        if what == "not asked for" {
            assert_eq!(&recv(&mut raw.receiver).await.unwrap().unwrap().head[..], b"head");
        }
        assert_refused(raw, what).await;
        // Nobody has the pipe's other end any more.
        assert_eq!(reader.read(&mut [0]).unwrap(), 0, "{what}");
    }
}

#[tokio::test]
async fn strangers_may_send_no_memory() {
    let mut raw = raw();
    raw.receiver.set_limits(Limits::HANDSHAKE);
    push(&raw.stream, &Block::Segments { first: 0, count: 1 }.bytes(), &[good().as_fd()]);
    assert_refused(raw, "a stranger's segment").await;
}

#[tokio::test]
async fn what_is_told_beside_the_messages_and_cannot_be_ends_the_connection() {
    let record = |kind: u8, number: u64| {
        let mut record = [0; RECORD];
        record[0] = kind;
        record[8..].copy_from_slice(&number.to_le_bytes());
        record
    };
    for told in [record(1, 1), record(1, u64::MAX), record(2, 0), record(3, 5), record(0, 0), record(9, 0)] {
        let mut raw = raw();
        push(&raw.control, &told, &[]);
        let ended = timeout(Duration::from_secs(5), async {
            loop {
                if let Err(error) = std::future::poll_fn(|cx| raw.sender.poll_ready(cx)).await {
                    return error;
                }
                sleep(Duration::from_millis(1)).await;
            }
        });
        let error = ended.await.expect("in bounded time");
        assert!(matches!(error, Error::Protocol { .. }), "{told:?}: {error}");
    }
    // To forget what was never known is no harm: the two sockets are not in step.
    let mut raw = raw();
    push(&raw.control, &record(4, 99), &[]);
    sleep(Duration::from_millis(20)).await;
    send(&mut raw.sender, Message::new("on", vec![])).await.unwrap();
}

#[tokio::test]
async fn greetings_that_are_none_are_refused_and_the_listener_lives_on() {
    let mut listener = Shm.listen(&"shm://*".parse().unwrap()).await.unwrap();
    let name = place::socket_name(listener.address()).unwrap();
    let hello = Block::Hello.bytes();
    let (socket, pipe) = (|| net::UnixStream::pair().unwrap().0, || rustix::pipe::pipe().unwrap().1);
    let tcp = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let cases: [(&str, Bytes, Vec<OwnedFd>); 6] = [
        ("no descriptor", hello.clone(), vec![]),
        ("two descriptors", hello.clone(), vec![socket().into(), socket().into()]),
        ("a pipe", hello.clone(), vec![pipe()]),
        ("another kind of socket", hello.clone(), vec![tcp().into()]),
        ("a message at once", wire::start(Bytes::from("head"), &[])[0].clone(), vec![socket().into()]),
        ("another protocol", Bytes::from(vec![7; BLOCK]), vec![socket().into()]),
    ];
    for (what, block, files) in cases {
        let address = net::SocketAddr::from_abstract_name(&name[1..]).unwrap();
        let stream = net::UnixStream::connect_addr(&address).unwrap();
        push(&stream, &block, &files.iter().map(AsFd::as_fd).collect::<Vec<_>>());
        let accepted = listener.accept().await;
        assert!(matches!(accepted, Err(Error::Protocol { .. })), "{what}: {accepted:?}");
    }
    let at = listener.address().clone();
    let (ours, theirs) = tokio::join!(Shm.connect(&at), listener.accept());
    assert!(ours.is_ok() && theirs.is_ok());
}

#[tokio::test]
async fn a_message_cut_off_anywhere_is_an_error() {
    let slots = [
        Slot::Inline { length: 40 },
        Slot::Lent { length: 10, segment: 0, offset: 4096 },
        Slot::Inline { length: 9000 },
    ];
    for head in [300, 6000] {
        let mut whole = Block::Segments { first: 0, count: 1 }.bytes().to_vec();
        whole.extend(wire::start(vec![7; head].into(), &slots).concat());
        whole.extend([5; 9040]);
        for cut in (1..whole.len()).step_by(97).chain([whole.len()]) {
            let mut raw = raw();
            push(&raw.stream, &whole[..cut], &[good().as_fd()]);
            let (stream, control) = (raw.stream, raw.control);
            drop((stream, control));
            if cut == whole.len() {
                let message = recv(&mut raw.receiver).await.unwrap().unwrap();
                assert_eq!(message.frames, [vec![5; 40], vec![0; 10], vec![5; 9000]]);
            }
            let received = recv(&mut raw.receiver).await;
            assert!(matches!(received, Err(Error::Lost { .. })), "cut at {cut}: {received:?}");
        }
    }
}

#[tokio::test]
async fn addresses_of_other_hosts_are_out_of_reach_and_say_so() {
    let listener = Shm.listen(&"shm://*".parse().unwrap()).await.unwrap();
    let (_, name) = listener.address().place().split_once('/').unwrap();
    for other in [format!("shm://0123456789abcdef-f0000001/{name}"), format!("shm://{name}")] {
        let other: Address = other.parse().unwrap();
        assert!(!Shm.reaches(&other));
        let error = Shm.connect(&other).await.unwrap_err().to_string();
        assert!(error.contains("not on this host"), "{error}");
    }
    let named = Shm.listen(&"shm://a name of one's own".parse().unwrap()).await.unwrap();
    assert!(named.address().place().ends_with("/a name of one's own") && Shm.reaches(named.address()));
    for bad in ["shm://0123456789abcdef-f0000001/x".to_owned(), format!("shm://{}", "x".repeat(65))] {
        assert!(matches!(Shm.listen(&bad.parse().unwrap()).await, Err(Error::Listen { .. })));
    }
}

proptest! {
    #[test]
    fn any_block_is_read_or_refused(mut block in prop::array::uniform32(any::<u8>()).prop_map(|start| {
        let mut block = [0; BLOCK];
        block[..32].copy_from_slice(&start);
        block[32..64].copy_from_slice(&start);
        block
    })) {
        let _ = Block::read(&block, &Limits::PEER);
        block[..4].copy_from_slice(&wire::MAGIC);
        block[4] %= 5;
        if let Ok(Block::Message { head, frames, payload, lent }) = Block::read(&block, &Limits::PEER) {
            let limits = Limits::PEER;
            prop_assert!(head <= limits.head && frames <= limits.frames && payload <= limits.payload && lent <= frames);
        }
    }

    #[test]
    fn any_tables_are_read_or_refused(table in prop::collection::vec(any::<u8>(), 0..200), frames in 0..9u64, lent in 0..9u64, payload: u64) {
        if let Ok(slots) = wire::read_table(&table, frames, lent, payload) {
            let sum: u64 = slots.iter().map(|slot| match slot {
                Slot::Inline { length } | Slot::Lent { length, .. } => *length,
            }).sum();
            prop_assert_eq!((sum, slots.len() as u64), (payload, frames));
        }
    }

    #[test]
    fn tables_tell_what_was_written(head in prop::collection::vec(any::<u8>(), 0..5000), slots in prop::collection::vec(
        prop_oneof![
            (0..1u64 << 38).prop_map(|length| Slot::Inline { length }),
            (0..1u64 << 38, any::<u64>(), any::<u64>()).prop_map(|(length, segment, offset)| Slot::Lent { length, segment, offset }),
        ], 0..40))
    {
        let bytes = wire::start(head.clone().into(), &slots).concat();
        let block = bytes[..BLOCK].try_into().unwrap();
        let Block::Message { head: length, frames, payload, lent } = Block::read(block, &Limits::PEER).unwrap() else {
            return Err(TestCaseError::fail("a message"));
        };
        let body = &bytes[BLOCK - INLINE..];
        prop_assert_eq!(&body[..length as usize], &head[..]);
        let table = &body[head.len()..][..wire::table_length(frames, lent)];
        prop_assert_eq!(wire::read_table(table, frames, lent, payload).unwrap(), slots);
    }

    #[test]
    fn batches_hold_what_they_were_given(heads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..500), 1..20)) {
        let mut batch = batch();
        for head in &heads {
            prop_assert!(batch.takes(head.len()));
            batch.push(head);
        }
        let bytes = batched(&mut batch);
        prop_assert!(batch.is_empty() && bytes.len() >= BLOCK);
        match Block::read(bytes[..BLOCK].try_into().unwrap(), &Limits::PEER).unwrap() {
            Block::Batch { body, messages, first } => {
                let body = bytes.slice(BLOCK - INLINE..BLOCK - INLINE + body);
                let mut read = Heads::new(body, messages, first);
                for head in &heads {
                    prop_assert_eq!(&read.next(&Limits::PEER).unwrap().unwrap()[..], &head[..]);
                }
                prop_assert!(read.next(&Limits::PEER).is_none());
            }
            Block::Message { head, .. } => prop_assert!(heads.len() == 1 && head == heads[0].len() as u64),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn any_batch_is_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..300), messages in 0..9u64, first in 0..99u64) {
        let mut heads = Heads::new(body.into(), messages, first);
        let limits = Limits { head: 80, ..Limits::PEER };
        while let Some(Ok(head)) = heads.next(&limits) {
            prop_assert!(head.len() <= 80);
        }
    }

    #[test]
    fn any_record_is_read_or_refused(record in prop::array::uniform16(any::<u8>())) {
        prop_assert_eq!(Record::read(&record).is_some(), (1..=4).contains(&record[0]));
    }
}
