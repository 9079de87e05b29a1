//! Waiting, giving up and ending: back-pressure, cancellation, half-close, death.

use std::{future::poll_fn, task::Poll, time::Duration};

use tokio::time::timeout;

use bytes::Bytes;

use super::{expect, pair, pattern};
use crate::{Error, Message, Transport, memory};

/// A sender is not ready for ever while nobody reads, neither of small messages nor of big ones, and all arrives
/// once somebody does.
pub async fn a_slow_reader_bounds_its_writer(transport: &dyn Transport, place: &str) {
    for (length, frames) in [(100, vec![]), (4, vec![pattern(1 << 18, 0)])] {
        let (_listener, mut ours, mut theirs) = pair(transport, place).await;
        let (mut taken, mut nbytes) = (0u32, 0);
        let head = |number: u32| number.to_le_bytes().into_iter().cycle().take(length).collect::<Bytes>();
        while let Ok(ready) =
            timeout(Duration::from_millis(300), poll_fn(|cx| ours.sender.poll_ready(cx))).await
        {
            ready.expect("it is ready");
            ours.sender.start_send(Message::new(head(taken), frames.clone())).expect("it takes a message");
            taken += 1;
            nbytes += length + frames.iter().map(Bytes::len).sum::<usize>();
            assert!(nbytes < 100 << 20, "{nbytes} bytes were taken although nobody reads");
        }
        let flush = async { poll_fn(|cx| ours.sender.poll_flush(cx)).await.expect("it flushes") };
        let receive = async {
            for number in 0..taken {
                assert_eq!(expect(&mut theirs).await.head, head(number));
            }
        };
        tokio::join!(flush, receive);
    }
}

/// Memory for a message that comes, those that its reader holds, and a window of what follows: not more, neither
/// while nobody reads nor for one who reads slowly, however much is sent.
pub async fn a_receiver_holds_a_window_and_no_more(transport: &dyn Transport, place: &str) {
    // No other test has blocks of this size, or of those that could stand in for it.
    const FRAME: usize = (4 << 20) - 5;
    const SIZES: std::ops::Range<usize> = FRAME..FRAME + 4096;
    const MESSAGES: usize = 40;
    const WINDOW: usize = 16 << 20;
    let (_listener, mut ours, mut theirs) = pair(transport, place).await;
    // In no block itself, so that what is counted was made on the way.
    let frame = Bytes::from(vec![3; FRAME]);
    let mut most = 0;
    let send = async {
        for _ in 0..MESSAGES {
            poll_fn(|cx| ours.sender.poll_ready(cx)).await.expect("it is ready");
            ours.sender.start_send(Message::new("", vec![frame.clone()])).expect("it takes a message");
        }
        poll_fn(|cx| ours.sender.poll_flush(cx)).await.expect("it flushes");
    };
    let receive = async {
        for _ in 0..MESSAGES {
            // What has begun to come goes on coming, but nobody takes it.
            tokio::time::sleep(Duration::from_millis(10)).await;
            let held = expect(&mut theirs).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
            most = most.max(memory::in_use(&SIZES));
            assert!(held.frames[0] == frame);
        }
    };
    tokio::join!(send, receive);
    assert!(most <= 2 * FRAME + WINDOW, "{most} bytes are held for a reader of {FRAME} at a time");
    if !ours.carries_objects {
        assert!(most >= FRAME, "what is held is not counted");
    }
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

/// Neither a message nor an error for closing again.
pub async fn nothing_follows_a_close(transport: &dyn Transport, place: &str) {
    let (_listener, mut ours, mut theirs) = pair(transport, place).await;
    ours.sender.close().await.expect("it closes");
    assert!(ours.sender.start_send(Message::new("late", vec![])).is_err());
    ours.sender.close().await.expect("it is closed");
    assert!(theirs.receiver.recv().await.expect("no error").is_none());
}

/// The last messages arrive even so.
pub async fn who_closes_and_goes_is_no_error(transport: &dyn Transport, place: &str) {
    let (_listener, mut ours, mut theirs) = pair(transport, place).await;
    for i in 0..10usize {
        let message = Message::new(vec![i as u8], vec![pattern(9000 * i, i)]);
        // A frame may be through only once the reader has fetched it.
        let (sent, got) = tokio::join!(ours.sender.send(message), expect(&mut theirs));
        sent.expect("it sends");
        assert_eq!(got.frames[0], pattern(9000 * i, i));
    }
    for i in 0..10u8 {
        ours.sender.send(Message::new(vec![i], vec![])).await.expect("it sends");
    }
    ours.sender.close().await.expect("it closes");
    theirs.sender.close().await.expect("it closes");
    drop(ours);
    for i in 0..10u8 {
        assert_eq!(expect(&mut theirs).await.head[0], i);
    }
    for _ in 0..2 {
        assert!(theirs.receiver.recv().await.expect("no error").is_none());
    }
}

/// In bounded time, also one who waits for room.
pub async fn a_writer_hears_that_its_reader_went(transport: &dyn Transport, place: &str) {
    let (_listener, mut ours, theirs) = pair(transport, place).await;
    let frame = pattern(1 << 20, 0);
    let write = async {
        loop {
            if let Err(error) = ours.sender.send(Message::new("", vec![frame.clone()])).await {
                return error;
            }
        }
    };
    let go = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(theirs);
    };
    let (error, ()) =
        timeout(Duration::from_secs(10), async { tokio::join!(write, go) }).await.expect("in bounded time");
    assert!(matches!(error, Error::Lost { .. }), "{error}");
}

/// No file descriptor, after hundreds of connections that ended in order or not.
pub async fn connections_that_end_leave_nothing_behind(transport: &dyn Transport, place: &str) {
    let descriptors = || std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let mut before = 0;
    for round in 0..200 {
        if round == 20 {
            before = descriptors();
        }
        let (_listener, mut ours, mut theirs) = pair(transport, place).await;
        ours.sender.send(Message::new("", vec![pattern(100, round)])).await.expect("it sends");
        expect(&mut theirs).await;
        if round % 2 == 0 {
            ours.sender.close().await.expect("it closes");
            assert!(theirs.receiver.recv().await.expect("no error").is_none());
        }
    }
    // Other tests of this process open some at the same time.
    for _ in 0..50 {
        if descriptors() < before + 100 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{before} file descriptors became {}", descriptors());
}
