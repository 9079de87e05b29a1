//! What needs a device: run these where there is one, or in the guest of `tests/rdma/run`.

mod copies;
mod faults;
mod limits;

use std::{
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rankine_transport::{Limits, Message, bare::Bare};

use super::*;
use crate::{connection::Shared, queue_pair::Shape};

/// Side channels over the loopback; queue pairs go through the device all the same.
const PLACE: &str = "verbs://127.0.0.1:0";

mod conformance {
    rankine_transport::conformance_suite!(super::Verbs::default(), super::PLACE);
}

fn verbs() -> Verbs {
    Verbs::default()
}

async fn listen() -> Box<dyn Listener> {
    verbs().listen(&PLACE.parse().unwrap()).await.unwrap()
}

/// Both ends of a connection.
async fn pair() -> [Connection; 2] {
    let mut listener = listen().await;
    let at = listener.address().clone();
    let connecting = verbs();
    let (ours, theirs) = tokio::join!(connecting.connect(&at), listener.accept());
    let mut ends = [ours.unwrap(), theirs.unwrap()];
    ends.iter_mut().for_each(|end| end.receiver.set_limits(Limits::PEER));
    ends
}

/// What is behind a connection of this test.
fn inside(connection: &Connection) -> Arc<Shared> {
    let mut all = Engine::open(&verbs()).unwrap().connections();
    all.retain(|shared| shared.peer == connection.peer);
    assert_eq!(all.len(), 1, "of this runtime one goes there");
    all.remove(0)
}

/// Bytes that tell their place.
fn pattern(length: usize, seed: usize) -> Bytes {
    (0..length).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 7) as u8).collect()
}

async fn expect(connection: &mut Connection) -> Message {
    let received = tokio::time::timeout(Duration::from_secs(60), connection.receiver.recv()).await;
    received.expect("in time").expect("it receives").expect("a message")
}

/// That this direction is lost, found soon, with a reason that says so.
async fn expect_lost(connection: &mut Connection, within: Duration, reason: &str) {
    let start = Instant::now();
    let received = tokio::time::timeout(within, connection.receiver.recv()).await.expect("in bounded time");
    match received {
        Err(error @ Error::Lost { .. }) => {
            assert!(error.to_string().contains(reason), "{error}; not: {reason}");
        }
        other => panic!("{other:?} after {:?}", start.elapsed()),
    }
}

#[tokio::test]
async fn a_frame_of_several_pieces_arrives_whole() {
    let [mut ours, mut theirs] = pair().await;
    let frame = pattern(2 * wire::PIECE as usize + 12_345, 1);
    let message = Message::new(pattern(100_000, 2), vec![frame.clone(), pattern(5, 3), frame.slice(1..)]);
    let send = async { ours.sender.send(message).await.unwrap() };
    let ((), got) = tokio::join!(send, expect(&mut theirs));
    assert_eq!(got.head, pattern(100_000, 2));
    assert!(got.frames[0] == frame && got.frames[1] == pattern(5, 3) && got.frames[2] == frame[1..]);
}

/// Takes 9 GiB of memory, and minutes in the guest: `tests/rdma/tier big`.
#[tokio::test]
#[ignore = "takes 9 GiB of memory"]
async fn a_frame_beyond_4_gib_arrives_whole() {
    let [mut ours, mut theirs] = pair().await;
    let length = (4u64 << 30) + 4321;
    let mut buffer = rankine_transport::AlignedBuffer::new(length).unwrap();
    let mut page = vec![7; 1 << 20];
    for number in 0u64.. {
        page[..8].copy_from_slice(&number.to_le_bytes());
        buffer.extend(&page);
        if buffer.is_full() {
            break;
        }
    }
    let frame = buffer.freeze();
    let send = async { ours.sender.send(Message::new("", vec![frame.clone()])).await.unwrap() };
    let receive = async { theirs.receiver.recv().await.unwrap().unwrap() };
    let ((), got) = tokio::join!(send, receive);
    assert!(got.frames[0] == frame);
}

/// One direction goes without a word, the other stays.
#[tokio::test]
async fn a_sending_half_that_goes_alone_is_missed() {
    let [ours, mut theirs] = pair().await;
    let Connection { mut sender, mut receiver, .. } = ours;
    sender.send(Message::new("last", vec![])).await.unwrap();
    drop(sender);
    assert_eq!(&expect(&mut theirs).await.head[..], b"last");
    expect_lost(&mut theirs, Duration::from_secs(5), "without closing").await;
    theirs.sender.send(Message::new("still", vec![])).await.unwrap();
    assert_eq!(&receiver.recv().await.unwrap().unwrap().head[..], b"still");
}

/// What was flushed arrives, though all is dropped right after.
#[tokio::test]
async fn what_was_sent_before_a_connection_is_dropped_arrives() {
    for _ in 0..20 {
        let [mut ours, mut theirs] = pair().await;
        for i in 0..10u8 {
            ours.sender.send(Message::new(vec![i; 3000], vec![])).await.unwrap();
        }
        drop(ours);
        for i in 0..10u8 {
            assert_eq!(expect(&mut theirs).await.head[..], [i; 3000]);
        }
        expect_lost(&mut theirs, Duration::from_secs(5), "without closing").await;
    }
}

/// Halves that are polled from several threads at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn halves_work_on_threads_of_their_own() {
    let ends = pair().await;
    let halves = ends.map(|Connection { mut sender, mut receiver, .. }| {
        let send = tokio::spawn(async move {
            for i in 0..100 {
                let frames = vec![pattern(i * 1000, i), pattern(3, i)];
                sender.send(Message::new(vec![i as u8], frames)).await.unwrap();
            }
            sender.close().await.unwrap();
        });
        let receive = tokio::spawn(async move {
            for i in 0..100 {
                let got = receiver.recv().await.unwrap().unwrap();
                assert!(got.head[..] == [i as u8] && got.frames[0] == pattern(i * 1000, i));
            }
            assert!(receiver.recv().await.unwrap().is_none());
            receiver
        });
        (send, receive)
    });
    for (send, receive) in halves {
        send.await.unwrap();
        receive.await.unwrap();
    }
}

/// The bare fabric moves what it is asked to, both ways.
#[test]
fn the_bare_fabric_works_between_two_threads() {
    use std::{io, sync::mpsc};
    struct Line(mpsc::Sender<Vec<u8>>, mpsc::Receiver<Vec<u8>>);
    impl Control for Line {
        fn exchange(&mut self, mine: &[u8]) -> io::Result<Vec<u8>> {
            self.0.send(mine.to_vec()).map_err(io::Error::other)?;
            self.1.recv().map_err(io::Error::other)
        }
    }
    let run = |mut line: Line, leads| {
        let mut bare =
            BareVerbs::new(Registrations::open(&verbs()).map_err(io::Error::other)?, &mut line, leads)?;
        for size in [0, 8, 100_000, 3 << 20] {
            assert_eq!(bare.ping_pong(size, 5)?.len(), 5);
            bare.stream(size, 20)?;
        }
        // What comes while one waits for something else is kept.
        bare.send(1)?;
        line.exchange(b"sent")?;
        bare.wait_until_idle()?;
        assert_eq!(bare.receive()?.len(), 1);
        io::Result::Ok(())
    };
    let ((to, from), (back, here)) = (mpsc::channel(), mpsc::channel());
    std::thread::scope(|scope| {
        let other = scope.spawn(|| run(Line(back, from), false));
        run(Line(to, here), true).unwrap();
        other.join().unwrap().unwrap();
    });
}

#[tokio::test]
async fn a_value_cannot_be_sent() {
    let [mut ours, _theirs] = pair().await;
    let sent = ours.sender.send(Message::object(5)).await;
    assert!(matches!(sent, Err(Error::Object { .. })));
}

/// On the machine it runs on: whether there is a device or not.
#[tokio::test]
async fn what_there_is_and_what_is_not_is_said() {
    let expected = std::env::var("RANKINE_EXPECT_SURVEY");
    match (verbs().survey(), expected) {
        (Ok(lines), Err(_)) => {
            let text = lines.join("\n");
            assert!(text.contains("port 1") && text.contains("used") && text.contains("ulimit -l"), "{text}");
            // One that is not there is not replaced by one that is.
            let other = Verbs { device: Some("nonesuch".into()), ..verbs() };
            let reason = other.survey().unwrap_err();
            assert!(reason.contains("is not the one asked for"), "{reason}");
            let other = Verbs { gid_index: Some(999), ..verbs() };
            let reason = other.survey().unwrap_err();
            assert!(reason.contains("has no GID 999; it has"), "{reason}");
        }
        (Err(reason), expected) => {
            let expected = expected.as_deref().unwrap_or("no RDMA device");
            assert!(reason.contains(expected), "{reason}; not: {expected}");
            let error = verbs().listen(&PLACE.parse().unwrap()).await.err().expect("there is no device");
            assert!(
                matches!(error, Error::Unavailable { .. }) && error.to_string().contains(expected),
                "{error}"
            );
            assert!(!verbs().reaches(&PLACE.parse().unwrap()));
        }
        (Ok(lines), Ok(expected)) => panic!("{lines:?}; not: {expected}"),
    }
}
