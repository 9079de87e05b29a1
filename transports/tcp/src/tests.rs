use std::{io::Write, net};

use proptest::prelude::*;

use super::*;

rankine_transport::conformance_suite!(Tcp::default(), "tcp://127.0.0.1:0");

mod over_ipv6 {
    use super::*;
    #[tokio::test]
    async fn messages_arrive_in_order() {
        rankine_transport::conformance::messages_arrive_in_order(&Tcp::default(), "tcp://[::1]:0").await;
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

fn hostile(numbers: [u64; 3]) -> Vec<u8> {
    let mut block = Block::of(&Message::new("", vec![])).to_vec();
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
    assert!(error.to_string().contains("does not begin like a message"), "{error}");
    // And the direction stays refused.
    assert!(connection.receiver.recv().await.is_err());
}

#[tokio::test]
async fn hostile_lengths_allocate_nothing() {
    for numbers in [[1 << 63, 0, 0], [0, 1 << 63, 0], [0, 1, 1 << 63], [u64::MAX; 3]] {
        let (mut stream, mut connection) = raw(Limits::PEER).await;
        stream.write_all(&hostile(numbers)).unwrap();
        assert!(matches!(connection.receiver.recv().await, Err(Error::Protocol { .. })), "{numbers:?}");
    }
}

#[tokio::test]
async fn frames_that_do_not_add_up_are_refused() {
    let (mut stream, mut connection) = raw(Limits::PEER).await;
    stream.write_all(&hostile([0, 2, 16])).unwrap();
    stream.write_all(&[8u64.to_le_bytes(), u64::MAX.to_le_bytes()].concat()).unwrap();
    assert!(matches!(connection.receiver.recv().await, Err(Error::Protocol { .. })));
}

#[tokio::test]
async fn a_message_cut_off_anywhere_is_an_error() {
    let message = Message::new(vec![7; 300], vec![Bytes::from(vec![1; 40]), Bytes::from(vec![2; 9])]);
    let mut whole = Block::of(&message).to_vec();
    whole.extend(&message.head[INLINE..]);
    whole.extend([40u64.to_le_bytes(), 9u64.to_le_bytes()].concat());
    message.frames.iter().for_each(|frame| whole.extend(frame));
    for cut in (0..whole.len()).step_by(13) {
        let (mut stream, mut connection) = raw(Limits::PEER).await;
        stream.write_all(&whole[..cut]).unwrap();
        drop(stream);
        assert!(matches!(connection.receiver.recv().await, Err(Error::Lost { .. })), "cut at {cut}");
    }
    let (mut stream, mut connection) = raw(Limits::PEER).await;
    stream.write_all(&whole).unwrap();
    let got = connection.receiver.recv().await.unwrap().unwrap();
    assert_eq!((got.head, got.frames), (message.head, message.frames));
}

#[tokio::test]
async fn a_value_cannot_be_sent() {
    let (_stream, mut connection) = raw(Limits::PEER).await;
    let sent = connection.sender.send(Message::object(5)).await;
    assert!(matches!(sent, Err(Error::Object { .. })));
}

/// Both halves of one side of a connection, and the other side as a raw socket.
async fn halves() -> (net::TcpStream, TcpSender, TcpReceiver) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (reader, writer) = listener.accept().await.unwrap().0.into_split();
    let peer = Address::new("tcp", stream.local_addr().unwrap());
    let sender =
        TcpSender { writer, peer: peer.clone(), waiting: VecDeque::new(), nbytes: 0, closing: false };
    (stream, sender, TcpReceiver { reader, peer, limits: Limits::PEER, state: Reading::start() })
}

/// What waits to be written is the frame itself.
#[tokio::test]
async fn sending_copies_no_payload() {
    let (_stream, mut sender, _) = halves().await;
    let frame = Bytes::from(vec![5; 3 << 20]);
    sender.start_send(Message::new("head", vec![frame.clone()])).unwrap();
    let waiting: Vec<_> = sender.waiting.iter().map(|bytes| (bytes.as_ptr(), bytes.len())).collect();
    assert!(waiting.contains(&(frame.as_ptr(), frame.len())));
    assert_eq!(sender.nbytes, BLOCK + 8 + frame.len());
}

/// The first byte of a frame that comes lies where the frame is handed out, at each step on the way.
#[tokio::test]
async fn receiving_copies_no_payload() {
    let (mut stream, _, mut receiver) = halves().await;
    let frame = Bytes::from(vec![5; 3 << 20]);
    let message = Message::new("head", vec![frame.clone()]);
    stream.write_all(&Block::of(&message)).unwrap();
    stream.write_all(&(frame.len() as u64).to_le_bytes()).unwrap();
    stream.write_all(&frame[..1000]).unwrap();
    let place = loop {
        let polled = std::future::poll_fn(|cx| Poll::Ready(receiver.poll_recv(cx))).await;
        assert!(polled.is_pending());
        match &receiver.state {
            Reading::Frames { current, .. } if current.as_ref().len() == 1000 => {
                break current.as_ref().as_ptr();
            }
            // Nothing of a frame is read before its own memory is there to take it.
            Reading::Block(block) => assert!(block.capacity() == BLOCK),
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

proptest! {
    #[test]
    fn any_block_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), BLOCK)) {
        let mut block = [0; BLOCK];
        block.copy_from_slice(&bytes);
        let _ = Block::read(&block, &Limits::PEER);
        block[..4].copy_from_slice(b"RKN1");
        block[4] &= 1;
        if let Ok(Block::Message { head, frames, payload }) = Block::read(&block, &Limits::PEER) {
            prop_assert!(head <= Limits::PEER.head && frames <= Limits::PEER.frames && payload <= Limits::PEER.payload);
        }
    }

    #[test]
    fn any_table_is_read_or_refused(table in prop::collection::vec(any::<u8>(), 0..64), payload: u64) {
        if let Ok(lengths) = wire::read_lengths(&table, payload) {
            prop_assert_eq!(lengths.iter().sum::<u64>(), payload);
        }
    }
}
