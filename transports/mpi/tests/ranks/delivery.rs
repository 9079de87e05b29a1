//! Messages arrive as they were sent, and no more than there is room for.

use std::{future::poll_fn, time::Duration};

use bytes::Bytes;
use rankine_transport::{Connection, Limits, Message};
use tokio::time::timeout;

use crate::{PORT, Ranks, connect, listen, pattern, peer, receive, send};

/// Small ones in batches, with a big one now and then.
pub(crate) async fn messages_arrive_in_order_both_ways_at_once(ranks: &mut Ranks<'_>) {
    const COUNT: u32 = 20_000;
    let Some(connection) = ranks.pair().await else { return };
    let Connection { mut sender, mut receiver, .. } = connection;
    let frame = |i: u32| if i.is_multiple_of(500) { pattern(100_000, i as usize) } else { Bytes::new() };
    let sending = async {
        for i in 0..COUNT {
            poll_fn(|cx| sender.poll_ready(cx)).await.expect("it is ready");
            sender.start_send(Message::new(i.to_le_bytes().to_vec(), vec![frame(i)])).expect("it takes it");
            if i % 100 == 99 {
                poll_fn(|cx| sender.poll_flush(cx)).await.expect("it flushes");
            }
        }
        sender.close().await.expect("it closes");
    };
    let receiving = async {
        for i in 0..COUNT {
            let got = receiver.recv().await.expect("it receives").expect("a message");
            assert_eq!(got.head[..], i.to_le_bytes());
            assert!(got.frames[0] == frame(i), "{i}");
        }
        assert!(receiver.recv().await.expect("it receives").is_none());
    };
    tokio::join!(sending, receiving);
}

/// Around every threshold: of a small part, of a packet, of what is received ahead, of a piece; as heads, as
/// frames, alone and with others; and around the number of frames whose lengths are in a record.
pub(crate) async fn messages_of_all_sizes_arrive_whole(ranks: &mut Ranks<'_>) {
    let Some(mut connection) = ranks.pair().await else { return };
    let around = [4 << 10, 16 << 10, 64 << 10, 1 << 20, 8 << 20, 16 << 20];
    let sizes =
        [0, 1, 7, 64].into_iter().chain(around.into_iter().flat_map(|size| [size - 1, size, size + 1]));
    let mut messages: Vec<(usize, Vec<usize>)> = Vec::new();
    for size in sizes {
        messages.push((8, vec![size]));
        messages.push((size, vec![]));
        messages.push((size.min(5000), vec![0, size, 7, size.min(70_000), 0]));
    }
    for frames in [4, 5, 255, 256, 257, 3000] {
        messages.push((9, vec![4096; frames]));
        messages.push((5000, (0..frames).map(|i| i % 3).collect()));
    }
    for (i, (head, frames)) in messages.into_iter().enumerate() {
        let message = Message::new(
            pattern(head, i),
            frames.iter().enumerate().map(|(j, length)| pattern(*length, i + j)).collect(),
        );
        if ranks.rank() == 1 {
            send(&mut connection, message.head, message.frames).await;
        } else {
            let got = receive(&mut connection).await;
            assert!(got.head == message.head, "head of {head}");
            assert!(got.frames == message.frames, "frames of {frames:?}");
            for frame in got.frames.iter().filter(|frame| !frame.is_empty()) {
                assert_eq!(frame.as_ptr().align_offset(64), 0, "received frames are aligned");
            }
        }
    }
}

/// Each rank has several with each other one, and says something on all of them in turn.
pub(crate) async fn many_connections_among_all_ranks_do_not_mix(ranks: &mut Ranks<'_>) {
    const EACH: usize = 30;
    let mut listener = listen(PORT).await;
    let size = ranks.size();
    let mut connections = Vec::new();
    for rank in 0..size {
        if rank == ranks.rank() {
            for _ in 0..(size - 1 - rank) * EACH {
                let mut connection = listener.accept().await.expect("it accepts");
                connection.receiver.set_limits(Limits::PEER);
                connections.push(connection);
            }
        } else if rank < ranks.rank() {
            for _ in 0..EACH {
                connections.push(connect(ranks.membership, rank, PORT).await);
            }
        }
    }
    for round in 0..20 {
        for (i, connection) in connections.iter_mut().enumerate() {
            let head = [ranks.rank(), i, round].map(|n| n as u8).to_vec();
            send(connection, head, vec![pattern(1 << (round % 14), i), pattern(6000, round)]).await;
        }
        for connection in &mut connections {
            // Who it is and which of its connections stays the same in all rounds.
            let got = receive(connection).await;
            let [from, i, said] = got.head[..] else { panic!("three bytes") };
            assert_eq!((peer(connection), usize::from(said)), (from.into(), round));
            assert!(got.frames[0] == pattern(1 << (round % 14), i.into()));
            assert!(got.frames[1] == pattern(6000, round));
        }
    }
}

/// A writer is not ready for ever while nobody reads, neither of small messages nor of big ones.
pub(crate) async fn a_slow_reader_bounds_its_writer(ranks: &mut Ranks<'_>) {
    for (length, most) in [(0, 20_000), (200, 2_000), (5_000, 3_000), (60_000, 300), (1 << 18, 60)] {
        let Some(mut connection) = ranks.pair().await else { continue };
        let mut taken = 0u32;
        if ranks.rank() == 1 {
            let sender = &mut connection.sender;
            while let Ok(ready) =
                timeout(Duration::from_millis(200), poll_fn(|cx| sender.poll_ready(cx))).await
            {
                ready.expect("it is ready");
                let message = Message::new(taken.to_le_bytes().to_vec(), vec![pattern(length, 0)]);
                sender.start_send(message).expect("it takes a message");
                taken += 1;
                assert!(taken < most, "{taken} messages of {length} B were taken although nobody reads");
            }
            // Now it may read.
            go_on(ranks).await;
            poll_fn(|cx| connection.sender.poll_flush(cx)).await.expect("it flushes");
            connection.sender.close().await.expect("it closes");
            // Its own direction is open until the other side has read all.
            assert!(connection.receiver.recv().await.expect("it receives").is_none());
        } else {
            go_on(ranks).await;
            while let Some(got) = connection.receiver.recv().await.expect("it receives") {
                assert_eq!(got.head[..], taken.to_le_bytes());
                taken += 1;
            }
            connection.sender.close().await.expect("it closes");
        }
    }
}

/// Rank 1 tells rank 0 to go on, beside the connection in question.
async fn go_on(ranks: &mut Ranks<'_>) {
    let first = ranks.rank() == 0;
    let Connection { sender, receiver, .. } = &mut ranks.steps[0];
    if first {
        receiver.recv().await.expect("it receives").expect("a step");
    } else {
        sender.send(Message::new("go on", vec![])).await.expect("it sends");
    }
}

/// Beyond 2 GiB and beyond 4 GiB, each byte in its place.
pub(crate) async fn frames_beyond_what_an_int_counts_arrive_whole(ranks: &mut Ranks<'_>) {
    const BIG: usize = (4 << 30) + (1 << 20) + 5;
    const ROOM: u64 = 12 << 30;
    if available() < ROOM {
        if ranks.rank() == 0 {
            println!(
                "SKIPPED frames_beyond_what_an_int_counts_arrive_whole: less than {ROOM} B of free memory"
            );
        }
        return;
    }
    let Some(mut connection) = ranks.pair().await else { return };
    // A mark now and then, by a step that no size of the transport's is a multiple of; pages between them
    // stay untouched.
    const STEP: usize = 1_000_003;
    let mark = |at: usize| (at / STEP) as u8 | 1;
    for length in [(2 << 30) + 3, BIG] {
        if ranks.rank() == 1 {
            let mut frame = vec![0; length];
            for at in (0..length).step_by(STEP) {
                frame[at] = mark(at);
            }
            send(&mut connection, "big", vec![frame.into(), Bytes::from_static(b"after it")]).await;
        } else {
            let got = receive(&mut connection).await;
            assert_eq!((got.frames[0].len(), &got.frames[1][..]), (length, &b"after it"[..]));
            for (i, chunk) in got.frames[0].chunks(STEP).enumerate() {
                assert!(chunk[0] == mark(i * STEP), "at {}", i * STEP);
                assert!(is_zero(&chunk[1..]), "after {}", i * STEP);
            }
        }
    }
}

/// Eight bytes at a time, so that gigabytes take no minute.
fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks();
    words.iter().all(|word| *word == [0; 8]) && rest.iter().all(|byte| *byte == 0)
}

/// Bytes of memory that this machine has free.
fn available() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Collective: of any length, nothing among them, and rank 0's word to all.
pub(crate) async fn what_each_rank_gives_all_have(ranks: &mut Ranks<'_>) {
    let given = |rank: usize| vec![rank as u8; rank * 1000];
    let all = ranks.membership.gather(&given(ranks.rank())).expect("all give");
    assert_eq!(all, (0..ranks.size()).map(given).collect::<Vec<_>>());
    let word = if ranks.rank() == 0 { &b"a word"[..] } else { &[] };
    assert_eq!(ranks.membership.broadcast(word).expect("all listen"), b"a word");
    let error = ranks.membership.gather(&vec![0; 2 << 20]).expect_err("that is too much");
    assert!(error.to_string().contains("1048576"), "{error}");
}
