use std::{io::Write, net, task::Poll};

use bytes::Bytes;
use proptest::prelude::*;
use rankine_transport::{Limits, Message, Receiver, Sender, batch::Heads, prefix};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::*;
use crate::{
    receiver::Reading,
    wire::{BLOCK, Block, INLINE, batch, batched},
};

rankine_transport::conformance_suite!(Tcp::default(), "tcp://127.0.0.1:0");

#[tokio::test]
async fn ipv6_and_an_interface_by_name_are_no_different() {
    use rankine_transport::conformance;
    for (tcp, place) in [(Tcp::default(), "tcp://[::1]:0"), (Tcp::default().interface("lo"), "tcp://*")] {
        conformance::messages_arrive_in_order(&tcp, place).await;
        conformance::frames_of_all_sizes_arrive_whole(&tcp, place).await;
        conformance::connecting_to_nobody_is_an_error(&tcp, place).await;
        conformance::listening_on_a_taken_address_is_an_error(&tcp, place).await;
        conformance::a_listener_is_within_reach(&tcp, place).await;
    }
}

/// A raw socket connected to a receiver.
async fn raw(limits: Limits) -> (net::TcpStream, Connection) {
    let mut listener = Tcp::default().listen(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let stream = net::TcpStream::connect(listener.address().place()).unwrap();
    let mut connection = listener.accept().await.unwrap();
    connection.receiver.set_limits(limits);
    (stream, connection)
}

/// What goes over the wire for these messages.
async fn written(messages: Vec<Message>) -> Vec<u8> {
    let (mut reader, writer) = tokio::io::duplex(8 << 20);
    let mut sender = TcpSender::new(writer, "tcp://x:1".parse().unwrap());
    for message in messages {
        sender.start_send(message).unwrap();
    }
    (&mut sender as &mut dyn Sender).close().await.unwrap();
    drop(sender);
    let mut bytes = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut bytes).await.unwrap();
    bytes.truncate(bytes.len() - BLOCK);
    bytes
}

async fn hostile(kind: u8, numbers: [u64; 3]) -> Vec<u8> {
    let mut block = written(vec![Message::new("", vec![])]).await;
    block[4] = kind;
    for (i, number) in numbers.iter().enumerate() {
        block[8 + 8 * i..16 + 8 * i].copy_from_slice(&number.to_le_bytes());
    }
    block
}

#[tokio::test]
async fn a_wrong_magic_is_refused() {
    let (mut stream, mut connection) = raw(Limits::PEER).await;
    stream.write_all(&[b'x'; BLOCK]).unwrap();
    let error = connection.receiver.recv().await.unwrap_err();
    assert!(error.to_string().contains("does not begin like a message of this version"), "{error}");
    // And the direction stays refused.
    assert!(connection.receiver.recv().await.is_err());
}

#[tokio::test]
async fn hostile_lengths_allocate_nothing() {
    for (kind, numbers) in [
        (0, [1 << 63, 0, 0]),
        (0, [0, 1 << 63, 0]),
        (0, [0, 1, 1 << 63]),
        (0, [u64::MAX; 3]),
        (2, [u64::MAX; 3]),
        (2, [1 << 40, 2, 0]),
        (2, [100, 0, 0]),
        (2, [100, 2, 1 << 63]),
        (2, [100, 2, 101]),
        (2, [100, u64::MAX, 0]),
        (2, [100, 1, 50]),
        (3, [0; 3]),
    ] {
        let (mut stream, mut connection) = raw(Limits::PEER).await;
        stream.write_all(&hostile(kind, numbers).await).unwrap();
        let received = loop {
            match connection.receiver.recv().await {
                Ok(Some(message)) => assert!(message.head.len() <= 100 && message.frames.is_empty()),
                ended => break ended,
            }
        };
        assert!(matches!(received, Err(Error::Protocol { .. })), "{kind} {numbers:?}: {received:?}");
    }
}

#[tokio::test]
async fn a_batch_is_bound_by_each_messages_limits() {
    let (mut stream, mut connection) = raw(Limits::HANDSHAKE).await;
    let heads = [vec![1; 100], vec![2; 128], vec![3; 129]];
    stream
        .write_all(&written(heads.iter().map(|h| Message::new(h.clone(), vec![])).collect()).await)
        .unwrap();
    for head in &heads[..2] {
        assert_eq!(connection.receiver.recv().await.unwrap().unwrap().head, head);
    }
    assert!(matches!(connection.receiver.recv().await, Err(Error::Protocol { .. })));
}

#[tokio::test]
async fn frames_that_do_not_add_up_are_refused() {
    let (mut stream, mut connection) = raw(Limits::PEER).await;
    let mut block = hostile(0, [0, 2, 16]).await;
    block[32..48].copy_from_slice(&[8u64.to_le_bytes(), u64::MAX.to_le_bytes()].concat());
    stream.write_all(&block).unwrap();
    assert!(matches!(connection.receiver.recv().await, Err(Error::Protocol { .. })));
}

#[tokio::test]
async fn a_message_cut_off_anywhere_is_an_error() {
    let frames = || vec![Bytes::from(vec![1; 40]), Bytes::from(vec![2; 9])];
    for messages in [
        vec![Message::new(vec![7; 300], frames())],
        vec![Message::new(vec![7; 6000], frames())],
        (0..9).map(|_| Message::new(vec![7; 50], vec![])).collect(),
    ] {
        let (heads, count) = (messages[0].head.clone(), messages.len());
        let whole = written(messages).await;
        for cut in (0..whole.len()).step_by(13) {
            let (mut stream, mut connection) = raw(Limits::PEER).await;
            stream.write_all(&whole[..cut]).unwrap();
            drop(stream);
            assert!(matches!(connection.receiver.recv().await, Err(Error::Lost { .. })), "cut at {cut}");
        }
        let (mut stream, mut connection) = raw(Limits::PEER).await;
        stream.write_all(&whole).unwrap();
        for _ in 0..count {
            assert_eq!(connection.receiver.recv().await.unwrap().unwrap().head, heads);
        }
    }
}

#[tokio::test]
async fn an_interface_that_is_not_there_is_named_with_those_that_are() {
    let error = Tcp::default().interface("ib7").listen(&"tcp://*".parse().unwrap()).await.err().unwrap();
    let text = error.to_string();
    assert!(text.contains("no network interface ib7") && text.contains("lo"), "{text}");
    assert!(Tcp::default().interface("ib7").survey().unwrap_err().contains("ib7"));
}

/// Both halves of one side of a connection, and the other side as a raw socket.
async fn halves() -> (net::TcpStream, TcpSender<OwnedWriteHalf>, TcpReceiver<OwnedReadHalf>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (reader, writer) = listener.accept().await.unwrap().0.into_split();
    let peer = Address::new("tcp", stream.local_addr().unwrap());
    let mut receiver = TcpReceiver::new(reader, peer.clone());
    receiver.set_limits(Limits::PEER);
    (stream, TcpSender::new(writer, peer), receiver)
}

/// What waits to be written is the frame itself.
#[tokio::test]
async fn sending_copies_no_payload() {
    let (_stream, mut sender, _) = halves().await;
    let frame = Bytes::from(vec![5; 3 << 20]);
    sender.start_send(Message::new("head", vec![frame.clone()])).unwrap();
    let waiting: Vec<_> = sender.waiting.iter().map(|bytes| (bytes.as_ptr(), bytes.len())).collect();
    assert!(waiting.contains(&(frame.as_ptr(), frame.len())));
    assert_eq!(sender.nbytes, BLOCK + frame.len());
}

/// The first byte of a frame that comes lies where the frame is handed out, at each step on the way.
#[tokio::test]
async fn receiving_copies_no_payload() {
    let (mut stream, _, mut receiver) = halves().await;
    let frame = Bytes::from(vec![5; 3 << 20]);
    let start = written(vec![Message::new("head", vec![frame.clone()])]).await;
    stream.write_all(&start[..BLOCK + 1000]).unwrap();
    let place = loop {
        let polled = std::future::poll_fn(|cx| Poll::Ready(receiver.poll_recv(cx))).await;
        assert!(polled.is_pending());
        match &receiver.state {
            Reading::Frames { current, .. } if current.as_ref().len() == 1000 => {
                break current.as_ref().as_ptr();
            }
            _ => {}
        }
        tokio::task::yield_now().await;
    };
    let rest = frame.slice(1000..);
    let writer = std::thread::spawn(move || stream.write_all(&rest).map(|()| stream));
    let got = (&mut receiver as &mut dyn Receiver).recv().await.unwrap().unwrap();
    assert_eq!(got.frames[0].as_ptr(), place);
    assert_eq!(got.frames[0], frame);
    drop(writer.join().unwrap().unwrap());
}

/// What many small messages cost on the wire is little more than they are.
#[tokio::test]
async fn small_messages_that_wait_share_a_block() {
    let bytes = written((0..10_000).map(|_| Message::new(vec![1; 8], vec![])).collect()).await;
    assert!(bytes.len() < 10_000 * 12 + 3 * BLOCK, "{}", bytes.len());
}

proptest! {
    #[test]
    fn any_block_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), BLOCK)) {
        let mut block = bytes;
        let _ = Block::read(&block, &Limits::PEER);
        block[..4].copy_from_slice(b"RKN2");
        block[4] %= 3;
        if let Ok(Block::Message { head, frames, payload }) = Block::read(&block, &Limits::PEER) {
            prop_assert!(head <= Limits::PEER.head && frames <= Limits::PEER.frames && payload <= Limits::PEER.payload);
        }
    }

    #[test]
    fn any_table_is_read_or_refused(table in prop::collection::vec(any::<u8>(), 0..64), payload: u64) {
        if let Ok(lengths) = prefix::read_lengths(&table, payload) {
            prop_assert_eq!(lengths.iter().sum::<u64>(), payload);
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
    fn batches_hold_what_they_were_given(heads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..500), 1..20)) {
        let mut batch = batch();
        for head in &heads {
            prop_assert!(batch.takes(head.len()));
            batch.push(head);
        }
        let bytes = batched(&mut batch);
        prop_assert!(batch.is_empty() && bytes.len() >= BLOCK);
        match Block::read(&bytes[..BLOCK], &Limits::PEER).unwrap() {
            Block::Batch { body, messages, first } => {
                let body = bytes.slice(BLOCK - INLINE..BLOCK - INLINE + body);
                let mut read = Heads::new(body, messages, first);
                for head in &heads {
                    prop_assert_eq!(&read.next(&Limits::PEER).unwrap().unwrap()[..], &head[..]);
                }
                prop_assert!(read.next(&Limits::PEER).is_none());
            }
            Block::Message { head, .. } => prop_assert!(heads.len() == 1 && head == heads[0].len() as u64),
            Block::Close => prop_assert!(false),
        }
    }
}
