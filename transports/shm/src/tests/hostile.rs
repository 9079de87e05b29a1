//! Peers that send, with bad intent, what no peer of ours would.

use std::{
    io::{IoSlice, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::net,
    },
};

use rustix::{
    fs::{FallocateFlags, MemfdFlags, SealFlags},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags},
};

use super::*;
use crate::{ledger::RECORD, segment::Refused};

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
