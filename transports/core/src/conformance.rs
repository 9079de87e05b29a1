//! The tests that every transport passes: one function a behaviour, one macro for all.
//!
//! `conformance_suite!(Transport::default(), "scheme://place")` in a transport's tests expands to one
//! test a behaviour. The place must be one that can be listened on many times (port 0, `*`).

use std::{future::poll_fn, task::Poll, time::Duration};

use bytes::Bytes;
use tokio::time::timeout;

use crate::{Address, Connection, Error, Limits, Listener, Message, Secret, Side, Transport, authenticate};

/// Runs the whole suite over a transport: see [the module](self).
#[macro_export]
macro_rules! conformance_suite {
    ($transport:expr, $place:expr) => {
        $crate::conformance_suite!(@ $transport, $place;
            messages_arrive_in_order frames_of_all_sizes_arrive_whole many_connections_do_not_mix
            both_directions_work_at_once a_slow_reader_bounds_its_writer a_closed_direction_leaves_the_other_open
            a_peer_that_goes_without_closing_is_an_error a_cancelled_receive_loses_nothing
            a_cancelled_send_corrupts_nothing connecting_to_nobody_is_an_error
            listening_on_a_taken_address_is_an_error strangers_may_send_only_handshakes
            who_shares_the_secret_is_let_in who_does_not_share_the_secret_is_refused);
    };
    (@ $transport:expr, $place:expr; $($behaviour:ident)*) => {$(
        #[tokio::test]
        async fn $behaviour() {
            let transport = $transport;
            let run = $crate::conformance::$behaviour(&transport, $place);
            tokio::time::timeout(std::time::Duration::from_secs(60), run).await.expect("it ends in time");
        }
    )*};
}

fn address(place: &str) -> Address {
    place.parse().expect("the suite's place is an address")
}

/// A listener and both ends of a connection to it, which take any message.
async fn pair(transport: &dyn Transport, place: &str) -> (Box<dyn Listener>, Connection, Connection) {
    let (listener, mut ours, mut theirs) = strangers(transport, place).await;
    ours.receiver.set_limits(Limits::PEER);
    theirs.receiver.set_limits(Limits::PEER);
    (listener, ours, theirs)
}

async fn strangers(transport: &dyn Transport, place: &str) -> (Box<dyn Listener>, Connection, Connection) {
    let mut listener = transport.listen(&address(place)).await.expect("it listens");
    let at = listener.address().clone();
    let (ours, theirs) = tokio::join!(transport.connect(&at), listener.accept());
    (listener, ours.expect("it connects"), theirs.expect("it accepts"))
}

async fn expect(connection: &mut Connection) -> Message {
    connection.receiver.recv().await.expect("it receives").expect("a message")
}

/// Bytes that tell their place.
fn pattern(length: usize, seed: usize) -> Bytes {
    (0..length).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 7) as u8).collect()
}

/// 10,000 messages.
pub async fn messages_arrive_in_order(transport: &dyn Transport, place: &str) {
    let (_listener, mut ours, mut theirs) = pair(transport, place).await;
    let send = async {
        for i in 0..10_000u32 {
            ours.sender.send(Message::new(i.to_le_bytes().to_vec(), vec![])).await.expect("it sends");
        }
    };
    let receive = async {
        for i in 0..10_000u32 {
            assert_eq!(expect(&mut theirs).await.head[..], i.to_le_bytes());
        }
    };
    tokio::join!(send, receive);
}

/// Around every threshold there is, and many frames in one message; aligned where they are received.
pub async fn frames_of_all_sizes_arrive_whole(transport: &dyn Transport, place: &str) {
    let (_listener, mut ours, mut theirs) = pair(transport, place).await;
    let sizes = [
        0usize,
        1,
        31,
        32,
        223,
        224,
        225,
        255,
        256,
        257,
        4095,
        4096,
        4097,
        65_535,
        65_536,
        65_537,
        (1 << 20) - 1,
        1 << 20,
        (1 << 20) + 1,
        (4 << 20) + 3,
    ];
    for (i, &size) in sizes.iter().enumerate() {
        let message =
            || Message::new(pattern(size, i), vec![pattern(size, 2 * i), Bytes::new(), pattern(7, i)]);
        let send = async { ours.sender.send(message()).await.expect("it sends") };
        let ((), got) = tokio::join!(send, expect(&mut theirs));
        assert_eq!((&got.head, &got.frames), (&message().head, &message().frames), "{size}");
    }
    let many: Vec<Bytes> = (0..1000).map(|i| pattern(i * 7, i)).collect();
    let send = async { ours.sender.send(Message::new("", many.clone())).await.expect("it sends") };
    let ((), got) = tokio::join!(send, expect(&mut theirs));
    assert_eq!(got.frames, many);
    if !theirs.carries_objects {
        for frame in got.frames.iter().filter(|frame| !frame.is_empty()) {
            assert_eq!(frame.as_ptr().align_offset(64), 0, "received frames are aligned");
        }
    }
}

/// 32 connections of one listener, interleaved.
pub async fn many_connections_do_not_mix(transport: &dyn Transport, place: &str) {
    let mut listener = transport.listen(&address(place)).await.expect("it listens");
    let at = listener.address().clone();
    let mut pairs = Vec::new();
    for _ in 0..32 {
        let (ours, theirs) = tokio::join!(transport.connect(&at), listener.accept());
        let (ours, mut theirs) = (ours.expect("it connects"), theirs.expect("it accepts"));
        theirs.receiver.set_limits(Limits::PEER);
        pairs.push((ours, theirs));
    }
    for round in 0..20 {
        for (i, (ours, _)) in pairs.iter_mut().enumerate() {
            let message = Message::new(vec![i as u8, round], vec![pattern(5000, i)]);
            ours.sender.send(message).await.expect("it sends");
        }
        for (i, (_, theirs)) in pairs.iter_mut().enumerate().rev() {
            let got = expect(theirs).await;
            assert_eq!((got.head[0], got.head[1]), (i as u8, round));
            assert_eq!(got.frames[0], pattern(5000, i));
        }
    }
}

/// Big messages both ways, neither waiting for the other.
pub async fn both_directions_work_at_once(transport: &dyn Transport, place: &str) {
    let (_listener, ours, theirs) = pair(transport, place).await;
    async fn both(connection: Connection) -> Connection {
        let Connection { mut sender, mut receiver, local, peer, carries_objects } = connection;
        let send = async {
            for i in 0..20 {
                sender.send(Message::new("", vec![pattern(1 << 20, i)])).await.expect("it sends");
            }
        };
        let receive = async {
            for i in 0..20 {
                let got = receiver.recv().await.expect("it receives").expect("a message");
                assert!(got.frames[0] == pattern(1 << 20, i));
            }
        };
        tokio::join!(send, receive);
        Connection { sender, receiver, local, peer, carries_objects }
    }
    tokio::join!(both(ours), both(theirs));
}

/// A sender is not ready for ever while nobody reads, and all arrives once somebody does.
pub async fn a_slow_reader_bounds_its_writer(transport: &dyn Transport, place: &str) {
    let (_listener, mut ours, mut theirs) = pair(transport, place).await;
    let mut taken = 0u32;
    while let Ok(ready) = timeout(Duration::from_millis(300), poll_fn(|cx| ours.sender.poll_ready(cx))).await
    {
        ready.expect("it is ready");
        let message = Message::new(taken.to_le_bytes().to_vec(), vec![pattern(1 << 18, 0)]);
        ours.sender.start_send(message).expect("it takes a message");
        taken += 1;
        assert!(taken < 400, "100 MiB were taken although nobody reads");
    }
    let flush = async { poll_fn(|cx| ours.sender.poll_flush(cx)).await.expect("it flushes") };
    let receive = async {
        for i in 0..taken {
            assert_eq!(expect(&mut theirs).await.head[..], i.to_le_bytes());
        }
    };
    tokio::join!(flush, receive);
}

/// Half-close.
pub async fn a_closed_direction_leaves_the_other_open(transport: &dyn Transport, place: &str) {
    let (_listener, mut ours, mut theirs) = pair(transport, place).await;
    ours.sender.send(Message::new("last", vec![])).await.expect("it sends");
    ours.sender.close().await.expect("it closes");
    assert_eq!(&expect(&mut theirs).await.head[..], b"last");
    for _ in 0..2 {
        assert!(theirs.receiver.recv().await.expect("no error").is_none());
    }
    theirs.sender.send(Message::new("answer", vec![])).await.expect("it sends");
    assert_eq!(&expect(&mut ours).await.head[..], b"answer");
}

/// Death is told from an orderly end.
pub async fn a_peer_that_goes_without_closing_is_an_error(transport: &dyn Transport, place: &str) {
    let (_listener, ours, mut theirs) = pair(transport, place).await;
    drop(ours);
    let received = timeout(Duration::from_secs(5), theirs.receiver.recv()).await.expect("in bounded time");
    assert!(matches!(received, Err(Error::Lost { .. })), "{received:?}");
}

/// Futures dropped at many points of a message's way.
pub async fn a_cancelled_receive_loses_nothing(transport: &dyn Transport, place: &str) {
    let (_listener, mut ours, mut theirs) = pair(transport, place).await;
    let send = async {
        for i in 0..50usize {
            let message = Message::new(vec![i as u8], vec![pattern(i * 20_000, i)]);
            ours.sender.send(message).await.expect("it sends");
        }
    };
    let receive = async {
        let mut got = 0usize;
        while got < 50 {
            // One poll, and the future is dropped; then a turn of the loop, or the data never comes.
            let polled = poll_fn(|cx| {
                let receive = theirs.receiver.recv();
                futures::pin_mut!(receive);
                Poll::Ready(receive.poll(cx))
            })
            .await;
            if let Poll::Ready(message) = polled {
                let message = message.expect("it receives").expect("a message");
                assert_eq!(message.head[0] as usize, got);
                assert!(message.frames[0] == pattern(got * 20_000, got));
                got += 1;
            } else {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::join!(send, receive);
}

/// A send that was dropped while under way goes on with the next.
pub async fn a_cancelled_send_corrupts_nothing(transport: &dyn Transport, place: &str) {
    let (_listener, mut ours, mut theirs) = pair(transport, place).await;
    let send = async {
        for i in 0..50usize {
            poll_fn(|cx| ours.sender.poll_ready(cx)).await.expect("it is ready");
            let message = Message::new(vec![i as u8], vec![pattern(i * 50_000, i)]);
            ours.sender.start_send(message).expect("it takes a message");
            let _: Poll<_> = poll_fn(|cx| Poll::Ready(ours.sender.poll_flush(cx))).await;
        }
        poll_fn(|cx| ours.sender.poll_flush(cx)).await.expect("it flushes");
    };
    let receive = async {
        for i in 0..50usize {
            let got = expect(&mut theirs).await;
            assert_eq!(got.head[0] as usize, i);
            assert!(got.frames[0] == pattern(i * 50_000, i));
        }
    };
    tokio::join!(send, receive);
}

/// Promptly.
pub async fn connecting_to_nobody_is_an_error(transport: &dyn Transport, place: &str) {
    let listener = transport.listen(&address(place)).await.expect("it listens");
    let at = listener.address().clone();
    drop(listener);
    let connected = timeout(Duration::from_secs(5), transport.connect(&at)).await.expect("in bounded time");
    let error = connected.expect_err("nobody is there");
    assert!(matches!(error, Error::Connect { .. }) && error.to_string().contains(at.as_str()), "{error}");
}

/// With the address in the message.
pub async fn listening_on_a_taken_address_is_an_error(transport: &dyn Transport, place: &str) {
    let listener = transport.listen(&address(place)).await.expect("it listens");
    let error = transport.listen(listener.address()).await.err().expect("it is taken");
    assert!(
        matches!(error, Error::Listen { .. }) && error.to_string().contains(listener.address().as_str()),
        "{error}"
    );
}

/// Before the secret is proved.
pub async fn strangers_may_send_only_handshakes(transport: &dyn Transport, place: &str) {
    for message in [
        Message::new(vec![0; 129], vec![]),
        Message::new("", vec![Bytes::new()]),
        Message::new("", vec![pattern(5000, 0)]),
    ] {
        let (_listener, mut ours, mut theirs) = strangers(transport, place).await;
        let _ = ours.sender.send(message).await;
        let received = theirs.receiver.recv().await;
        assert!(matches!(received, Err(Error::Protocol { .. })), "{received:?}");
    }
}

/// And may then send anything.
pub async fn who_shares_the_secret_is_let_in(transport: &dyn Transport, place: &str) {
    let (_listener, mut ours, mut theirs) = strangers(transport, place).await;
    let secret = Secret::random();
    let (a, b) = tokio::join!(
        authenticate(&mut ours, &secret, Side::Connecting),
        authenticate(&mut theirs, &secret, Side::Accepting)
    );
    a.expect("let in");
    b.expect("let in");
    ours.sender.send(Message::new("", vec![pattern(5000, 1)])).await.expect("it sends");
    assert_eq!(expect(&mut theirs).await.frames[0], pattern(5000, 1));
}

/// On both sides, with a message that says so.
pub async fn who_does_not_share_the_secret_is_refused(transport: &dyn Transport, place: &str) {
    let (_listener, mut ours, mut theirs) = strangers(transport, place).await;
    let (a, b) = (Secret::random(), Secret::random());
    let (a, b) = tokio::join!(
        authenticate(&mut ours, &a, Side::Connecting),
        authenticate(&mut theirs, &b, Side::Accepting)
    );
    for refused in [a, b] {
        let error = refused.expect_err("another secret");
        assert!(matches!(error, Error::Secret { .. }) && error.to_string().contains("secret"), "{error}");
    }
}
