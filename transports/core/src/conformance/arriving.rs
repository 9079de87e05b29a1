//! What is sent arrives: in order, whole, and apart from what others send.

use bytes::Bytes;

use super::{address, available_memory, expect, pair, pattern};
use crate::{Connection, Error, Limits, Message, Transport};

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

/// Small messages, big ones and empty ones, handed over without waiting for any to be sent.
pub async fn messages_that_wait_together_arrive_in_order(transport: &dyn Transport, place: &str) {
    let (_listener, mut ours, mut theirs) = pair(transport, place).await;
    let message = |i: usize| match i % 50 {
        0 => Message::new(pattern(70_000, i), vec![]),
        10 => Message::new("", vec![]),
        20 => Message::new(pattern(30, i), vec![pattern(9, i)]),
        30 => Message::new("", vec![Bytes::new(), pattern(100_000, i)]),
        40 => Message::new(pattern(4097, i), vec![]),
        size => Message::new(pattern(size * 7, i), vec![]),
    };
    const COUNT: usize = 5000;
    let send = async {
        for i in 0..COUNT {
            std::future::poll_fn(|cx| ours.sender.poll_ready(cx)).await.expect("it is ready");
            ours.sender.start_send(message(i)).expect("it takes a message");
        }
        std::future::poll_fn(|cx| ours.sender.poll_flush(cx)).await.expect("it flushes");
    };
    let receive = async {
        for i in 0..COUNT {
            let (got, sent) = (expect(&mut theirs).await, message(i));
            assert!(got.head == sent.head && got.frames == sent.frames, "message {i}");
        }
    };
    tokio::join!(send, receive);
}

/// More than any list of buffers that a system call or a network card takes.
pub async fn tens_of_thousands_of_frames_arrive_whole(transport: &dyn Transport, place: &str) {
    let (_listener, mut ours, mut theirs) = pair(transport, place).await;
    let frames: Vec<Bytes> = (0..30_000).map(|i| pattern(i % 90, i)).collect();
    let send = async { ours.sender.send(Message::new("many", frames.clone())).await.expect("it sends") };
    let ((), got) = tokio::join!(send, expect(&mut theirs));
    assert!(got.frames == frames);
}

/// Beyond what counts of 31 and of 32 bits hold, where there is memory for it.
pub async fn frames_beyond_4_gib_arrive_whole(transport: &dyn Transport, place: &str) {
    for size in [(2usize << 30) + 5, (4 << 30) + 5] {
        let needed = 3 * size as u64;
        if available_memory() < needed {
            println!("SKIPPED: a frame of {size} bytes wants {needed} bytes of free memory");
            return;
        }
        let mut bytes = vec![0u8; size];
        for place in [0, 1 << 30, (2 << 30) - 1, 2 << 30, size - 1] {
            bytes[place] = 1 + (place % 251) as u8;
        }
        let frame = Bytes::from(bytes);
        let (_listener, mut ours, mut theirs) = pair(transport, place).await;
        let message = Message::new("big", vec![frame.clone(), Bytes::from_static(b"after")]);
        let send = async { ours.sender.send(message).await.expect("it sends") };
        let ((), got) = tokio::join!(send, expect(&mut theirs));
        assert!(got.frames[0] == frame && &got.frames[1][..] == b"after", "{size}");
    }
}

/// Over the others they are refused, and the connection lives on.
pub async fn values_travel_only_within_a_process(transport: &dyn Transport, place: &str) {
    let (_listener, mut ours, mut theirs) = pair(transport, place).await;
    let sent = ours.sender.send(Message::object(String::from("a value"))).await;
    if ours.carries_objects {
        sent.expect("it sends");
        let value = expect(&mut theirs).await.object.expect("a value");
        assert_eq!(value.downcast_ref::<String>().expect("of that type"), "a value");
    } else {
        assert!(matches!(sent, Err(Error::Object { .. })), "{sent:?}");
    }
    ours.sender.send(Message::new("after", vec![])).await.expect("it sends");
    assert_eq!(&expect(&mut theirs).await.head[..], b"after");
}

/// Each of the three.
pub async fn what_exceeds_the_limits_is_refused(transport: &dyn Transport, place: &str) {
    let limits = Limits { head: 1000, frames: 3, payload: 10_000 };
    let fits = || Message::new(pattern(1000, 0), vec![pattern(4000, 1), pattern(6000, 2), Bytes::new()]);
    for message in [
        Message::new(pattern(1001, 0), vec![]),
        Message::new("", vec![Bytes::new(); 4]),
        Message::new("", vec![pattern(4000, 1), pattern(6001, 2)]),
    ] {
        let (_listener, mut ours, mut theirs) = pair(transport, place).await;
        theirs.receiver.set_limits(limits);
        let exchange = async {
            let _ = ours.sender.send(fits()).await;
            let _ = ours.sender.send(message).await;
        };
        let receive = async {
            assert_eq!(expect(&mut theirs).await.frames, fits().frames);
            theirs.receiver.recv().await
        };
        // A sender may wait for ever for one who refuses.
        let received = tokio::select! {
            received = receive => received,
            () = async { exchange.await; std::future::pending().await } => unreachable!("it is pending"),
        };
        assert!(matches!(received, Err(Error::Protocol { .. })), "{received:?}");
    }
}
