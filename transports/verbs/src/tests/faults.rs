//! Peers that lie, and peers that go.

use std::{
    io::{Read, Write},
    net,
    process::{Child, Command, Stdio},
};

use super::*;
use crate::{
    device::Link,
    exchange::{Endpoint, HELLO},
    wire::{Descriptor, Header},
};

/// Has a connection send bytes that are no message of its own making.
async fn forge(connection: &mut Connection, bytes: Vec<u8>) {
    inside(connection).lock().outgoing.push_bytes(bytes.into());
    let _ = std::future::poll_fn(|cx| connection.sender.poll_flush(cx)).await;
}

fn header(head: u64, frames: u64, payload: u64) -> Vec<u8> {
    Header::Message { head, frames, payload }.encode().to_vec()
}

#[tokio::test]
async fn hostile_streams_are_refused_and_allocate_nothing() {
    let mut other = pair().await;
    let table = |lengths: [u64; 2]| lengths.map(u64::to_le_bytes).concat();
    let beyond = [
        header(0, 1, 40_000),
        40_000u64.to_le_bytes().to_vec(),
        Descriptor { address: u64::MAX - 1000, key: 1 }.encode().to_vec(),
    ];
    for (what, bytes) in [
        ("does not begin like a message", vec![b'x'; 64]),
        ("head bytes", header(1 << 63, 0, 0)),
        ("frames where at most", header(0, 1 << 63, 0)),
        ("payload bytes", header(0, 1, 1 << 63)),
        ("payload bytes", header(0, 1, u64::MAX)),
        ("do not add up", [header(0, 2, 16), table([8, u64::MAX])].concat()),
        ("do not add up", [header(0, 2, 16), table([8, 9])].concat()),
        ("unknown kind", [&b"RKV1\x07"[..], &[0; 27]].concat()),
        ("beyond the end of memory", beyond.concat()),
    ] {
        let [mut ours, mut theirs] = pair().await;
        forge(&mut ours, bytes).await;
        for _ in 0..2 {
            let error = theirs.receiver.recv().await.unwrap_err();
            assert!(matches!(error, Error::Protocol { .. }) && error.to_string().contains(what), "{error}");
        }
    }
    // Others notice nothing.
    other[0].sender.send(Message::new("fine", vec![])).await.unwrap();
    assert_eq!(&expect(&mut other[1]).await.head[..], b"fine");
}

#[tokio::test]
async fn a_key_that_the_peer_did_not_give_ends_this_connection_alone() {
    let mut other = pair().await;
    let [mut ours, mut theirs] = pair().await;
    let place = pattern(40_000, 0);
    let descriptor = Descriptor { address: place.as_ptr() as u64, key: 0xdead_beef };
    let parts = [header(0, 1, 40_000), 40_000u64.to_le_bytes().to_vec(), descriptor.encode().to_vec()];
    forge(&mut ours, parts.concat()).await;
    expect_lost(&mut theirs, Duration::from_secs(10), "remote access error").await;
    // And stays so, in both directions.
    assert!(theirs.sender.send(Message::new("", vec![])).await.is_err());
    let [one, another] = &mut other;
    let send = async { one.sender.send(Message::new("", vec![pattern(1 << 20, 5)])).await.unwrap() };
    let ((), got) = tokio::join!(send, expect(another));
    assert!(got.frames[0] == pattern(1 << 20, 5));
}

/// What a queue pair that is not there says of itself.
fn nobody() -> [u8; HELLO] {
    let device = device::Device::open(&verbs()).unwrap();
    let mut endpoint = Endpoint::new(&device, 0xff_fff0);
    endpoint.issues = 1;
    endpoint.encode()
}

/// A raw side channel to a listener.
fn raw(listener: &dyn Listener) -> net::TcpStream {
    net::TcpStream::connect(listener.address().place()).unwrap()
}

#[tokio::test]
async fn noise_on_the_side_channel_concerns_the_visitor_alone() {
    let mut listener = listen().await;
    // One is silent all the while.
    let _silent = raw(&*listener);
    for (sent, reason) in [
        (vec![b'x'; HELLO], "does not begin like a side channel"),
        ([&b"RKNVRB\x09\x09"[..], &[0; HELLO - 8]].concat(), "another version"),
        ([&nobody()[..8], &[0xff; HELLO - 8]].concat(), "figures that none has"),
    ] {
        raw(&*listener).write_all(&sent).unwrap();
        let error = listener.accept().await.unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }) && error.to_string().contains(reason), "{error}");
    }
    raw(&*listener).write_all(&nobody()[..HELLO / 2]).unwrap();
    assert!(matches!(listener.accept().await, Err(Error::Lost { .. })), "it hung up");

    let at = listener.address().clone();
    let connecting = verbs();
    let (ours, theirs) = tokio::join!(connecting.connect(&at), listener.accept());
    ours.unwrap().sender.send(Message::new("fine", vec![])).await.unwrap();
    assert_eq!(&theirs.unwrap().receiver.recv().await.unwrap().unwrap().head[..], b"fine");
}

/// The accepting end of a connection whose other end is a side channel alone.
async fn to_nobody() -> (net::TcpStream, Connection) {
    let mut listener = listen().await;
    let mut stream = raw(&*listener);
    stream.write_all(&nobody()).unwrap();
    stream.write_all(&[0]).unwrap();
    let connection = listener.accept().await.unwrap();
    let mut answer = [1; HELLO + 1];
    stream.read_exact(&mut answer).unwrap();
    assert!(Endpoint::decode(answer[..HELLO].try_into().unwrap()).is_ok() && answer[HELLO] == 0);
    (stream, connection)
}

#[tokio::test]
async fn noise_on_the_side_channel_of_a_connection_ends_it() {
    let (mut stream, mut connection) = to_nobody().await;
    stream.write_all(b"more").unwrap();
    let error = connection.receiver.recv().await.unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }) && error.to_string().contains("side channel"), "{error}");
}

/// As when the link goes: the side channel stays, but no packet is answered.
#[tokio::test]
async fn a_queue_pair_that_does_not_answer_is_given_up_in_bounded_time() {
    let (_stream, mut connection) = to_nobody().await;
    let _ = connection.sender.send(Message::new("anybody?", vec![])).await;
    expect_lost(&mut connection, Duration::from_secs(30), "does not answer").await;
}

#[tokio::test]
async fn devices_of_different_fabrics_are_told_so() {
    let mut endpoint = Endpoint::decode(&nobody()).unwrap();
    endpoint.link = match endpoint.link {
        Link::Ethernet => Link::InfiniBand,
        Link::InfiniBand => Link::Ethernet,
    };
    let mut listener = listen().await;
    let mut stream = raw(&*listener);
    stream.write_all(&endpoint.encode()).unwrap();
    let error = listener.accept().await.unwrap_err();
    assert!(error.to_string().contains("choose devices of one fabric"), "{error}");
    // The visitor is told, too.
    let mut told = Vec::new();
    let _ = stream.read_to_end(&mut told);
    assert!(String::from_utf8_lossy(&told[HELLO..]).contains("choose devices of one fabric"));
}

/// Killed when it goes.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process of its own that connects to `listener` and does as the test `role` says.
async fn other_process(listener: &mut Box<dyn Listener>, role: &str) -> (Process, Connection) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", &format!("tests::faults::{role}")]);
    command.env("RANKINE_TEST_ADDRESS", listener.address().as_str()).stdout(Stdio::null());
    let process = Process(command.spawn().unwrap());
    let mut connection = listener.accept().await.unwrap();
    connection.receiver.set_limits(Limits::PEER);
    (process, connection)
}

async fn connect_back() -> Option<Connection> {
    let address = std::env::var("RANKINE_TEST_ADDRESS").ok()?;
    let mut connection = verbs().connect(&address.parse().unwrap()).await.unwrap();
    connection.receiver.set_limits(Limits::PEER);
    Some(connection)
}

/// A network interface that is down until this goes.
struct Unplugged(String);

impl Unplugged {
    fn new(link: String) -> Self {
        set_link(&link, "down");
        Self(link)
    }
}

impl Drop for Unplugged {
    fn drop(&mut self) {
        set_link(&self.0, "up");
    }
}

fn set_link(link: &str, state: &str) {
    let status = Command::new("ip").args(["link", "set", link, state]).status().unwrap();
    assert!(status.success(), "ip link set {link} {state}");
}

/// Both sides hear of it, each by itself or from the other; what was not under way goes on once the link is back.
#[tokio::test]
#[ignore = "takes down the network interface of the device, which RANKINE_TEST_LINK names"]
async fn a_link_that_goes_within_a_frame_ends_that_connection_in_bounded_time() {
    let link = std::env::var("RANKINE_TEST_LINK").expect("RANKINE_TEST_LINK names a network interface");
    let mut idle = pair().await;
    let [mut ours, mut theirs] = pair().await;
    let frame = Bytes::from(vec![0; LONG]);
    ours.sender.start_send(Message::new("", vec![frame.clone()])).unwrap();
    let shared = inside(&theirs);
    let flush = std::future::poll_fn(|cx| {
        let _ = theirs.receiver.poll_recv(cx);
        let flushed = ours.sender.poll_flush(cx);
        assert!(flushed.is_pending(), "{flushed:?}");
        if shared.lock().flow.read > 0 { Poll::Ready(()) } else { Poll::Pending }
    });
    tokio::time::timeout(Duration::from_secs(60), flush).await.expect("it is under way");
    drop(shared);

    let unplugged = Unplugged::new(link);
    let start = Instant::now();
    expect_lost(&mut theirs, Duration::from_secs(30), "its link").await;
    let found = start.elapsed();
    drop(theirs);
    let flush = std::future::poll_fn(|cx| ours.sender.poll_flush(cx));
    let flushed = tokio::time::timeout(Duration::from_secs(30), flush).await.expect("in bounded time");
    assert!(matches!(flushed, Err(Error::Lost { .. })), "{flushed:?}");
    println!("the link's end was found after {found:?}, and its peer lost after {:?}", start.elapsed());
    drop(unplugged);

    idle[0].sender.send(Message::new("still", vec![])).await.unwrap();
    assert_eq!(&expect(&mut idle[1]).await.head[..], b"still");
    let [mut one, mut another] = pair().await;
    let send = async { one.sender.send(Message::new("", vec![pattern(1 << 20, 6)])).await.unwrap() };
    let ((), got) = tokio::join!(send, expect(&mut another));
    assert!(got.frames[0] == pattern(1 << 20, 6));
}

/// More than is lent at once, so that somebody can be killed within.
const LONG: usize = 600 << 20;

#[tokio::test]
#[ignore = "the other process of a test"]
async fn send_a_long_frame() {
    let Some(mut connection) = connect_back().await else { return };
    let _ = connection.sender.send(Message::new("", vec![Bytes::from(vec![0; LONG])])).await;
}

#[tokio::test]
#[ignore = "the other process of a test"]
async fn receive_a_long_frame() {
    let Some(mut connection) = connect_back().await else { return };
    let _ = connection.receiver.recv().await;
}

#[tokio::test]
async fn a_sender_that_is_killed_within_a_frame_is_missed_at_once() {
    let mut listener = listen().await;
    let mut other = pair().await;
    let (mut process, mut connection) = other_process(&mut listener, "send_a_long_frame").await;
    let shared = inside(&connection);
    while shared.lock().flow.read == 0 {
        let polled = std::future::poll_fn(|cx| Poll::Ready(connection.receiver.poll_recv(cx))).await;
        assert!(polled.is_pending());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(shared);
    process.0.kill().unwrap();
    expect_lost(&mut connection, Duration::from_secs(5), "").await;
    drop(connection);
    other[0].sender.send(Message::new("fine", vec![])).await.unwrap();
    assert_eq!(&expect(&mut other[1]).await.head[..], b"fine");
}

#[tokio::test]
async fn a_receiver_that_is_killed_within_a_frame_is_missed_at_once() {
    let mut listener = listen().await;
    let (mut process, mut connection) = other_process(&mut listener, "receive_a_long_frame").await;
    let frame = Bytes::from(vec![0; LONG]);
    connection.sender.start_send(Message::new("", vec![frame.clone()])).unwrap();
    let shared = inside(&connection);
    while shared.lock().flow.theirs.read == 0 {
        let polled = std::future::poll_fn(|cx| Poll::Ready(connection.sender.poll_flush(cx))).await;
        assert!(polled.is_pending());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(shared);
    process.0.kill().unwrap();
    let flush = std::future::poll_fn(|cx| connection.sender.poll_flush(cx));
    let flushed = tokio::time::timeout(Duration::from_secs(5), flush).await.expect("in bounded time");
    assert!(matches!(flushed, Err(Error::Lost { .. })), "{flushed:?}");
    // The frame is let go with the connection.
    drop(connection);
    tokio::time::timeout(Duration::from_secs(5), async {
        while !frame.is_unique() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it is let go");
}
