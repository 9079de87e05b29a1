//! How connections end, in order and not.

use std::{collections::HashSet, future::poll_fn, io, task::Poll, thread, time::Duration};

use bytes::Bytes;
use rankine_transport::{Address, Connection, Error, Message, Transport};
use rankine_transport_mpi::Mpi;
use tokio::time::{sleep, timeout};

use crate::{PORT, Ranks, connect, listen, receive, send};

/// Bytes of a frame that takes a while.
const BIG: usize = 500 << 20;
/// What a broken connection shows in no time.
const SOON: Duration = Duration::from_secs(5);

pub(crate) async fn a_closed_direction_leaves_the_other_open(ranks: &mut Ranks<'_>) {
    let Some(mut connection) = ranks.pair().await else { return };
    if ranks.rank() == 1 {
        send(&mut connection, "last", vec![]).await;
        connection.sender.close().await.expect("it closes");
        connection.sender.close().await.expect("it is closed");
        let error = connection.sender.send(Message::new("more", vec![])).await.expect_err("it is closed");
        assert!(error.to_string().contains("closed"), "{error}");
        assert_eq!(receive(&mut connection).await.head, "answer");
    } else {
        assert_eq!(receive(&mut connection).await.head, "last");
        for _ in 0..2 {
            assert!(connection.receiver.recv().await.expect("it receives").is_none());
        }
        send(&mut connection, "answer", vec![]).await;
    }
    ranks.steps_pair().await;
}

pub(crate) async fn a_dropped_connection_is_lost_to_the_other_side(ranks: &mut Ranks<'_>) {
    let Some(mut connection) = ranks.pair().await else { return };
    if ranks.rank() == 1 {
        send(&mut connection, "what was flushed", vec![Bytes::from(vec![1; 100_000])]).await;
        drop(connection);
    } else {
        assert_eq!(receive(&mut connection).await.head, "what was flushed");
        is_lost(&mut connection).await;
        let sent = timeout(SOON, async {
            loop {
                connection.sender.send(Message::new("?", vec![])).await?;
            }
        });
        let sent: Result<(), Error> = sent.await.expect("in bounded time");
        assert!(matches!(sent, Err(Error::Lost { .. })), "{sent:?}");
    }
    ranks.steps_pair().await;
}

/// Of which not all can have been handed to MPI at once.
pub(crate) async fn a_sender_that_goes_amid_a_frame_is_lost_and_its_number_used_again(ranks: &mut Ranks<'_>) {
    let mut names = HashSet::new();
    for looks in 0..12 {
        let Some(mut connection) = ranks.pair().await else { return };
        names.insert(name(ranks, &connection));
        if ranks.rank() == 1 {
            connection.sender.start_send(Message::new("", vec![vec![0; BIG].into()])).expect("it takes it");
            for _ in 0..looks {
                let _ = poll_fn(|cx| Poll::Ready(connection.sender.poll_flush(cx))).await;
            }
            drop(connection);
        } else {
            is_lost(&mut connection).await;
        }
        ranks.steps_pair().await;
    }
    one_is_used_again(ranks, &names).await;
}

pub(crate) async fn a_receiver_that_goes_amid_a_frame_is_lost_and_its_number_used_again(
    ranks: &mut Ranks<'_>,
) {
    let mut names = HashSet::new();
    for looks in 0..12 {
        let Some(mut connection) = ranks.pair().await else { return };
        names.insert(name(ranks, &connection));
        if ranks.rank() == 1 {
            let frames = vec![vec![0; BIG].into()];
            let sent = timeout(SOON, connection.sender.send(Message::new("", frames))).await;
            let error = sent.expect("in bounded time").expect_err("it went");
            assert!(matches!(error, Error::Lost { .. }), "{error}");
        } else {
            for _ in 0..looks {
                let _ = poll_fn(|cx| Poll::Ready(connection.receiver.poll_recv(cx))).await;
            }
            drop(connection);
        }
        ranks.steps_pair().await;
    }
    one_is_used_again(ranks, &names).await;
}

/// Polled once, and dropped.
pub(crate) async fn an_abandoned_connect_leaves_nothing_behind(ranks: &mut Ranks<'_>) {
    const TIMES: usize = 100;
    if ranks.rank() == 0 {
        let mut listener = listen(PORT).await;
        for _ in 0..TIMES {
            let mut abandoned = listener.accept().await.expect("it accepts");
            is_lost(&mut abandoned).await;
        }
        let mut connection = listener.accept().await.expect("it accepts");
        connection.receiver.set_limits(rankine_transport::Limits::PEER);
        assert_eq!(receive(&mut connection).await.head, "at last");
    } else if ranks.rank() == 1 {
        // Somebody listens there from here on.
        drop(connect(ranks.membership, 0, PORT).await);
        let address = ranks.membership.address(0, PORT);
        for _ in 1..TIMES {
            let connecting = Mpi::default();
            let mut connecting = connecting.connect(&address);
            let polled = poll_fn(|cx| Poll::Ready(connecting.as_mut().poll(cx))).await;
            drop(polled);
        }
        let mut connection = connect(ranks.membership, 0, PORT).await;
        send(&mut connection, "at last", vec![]).await;
        connection.sender.close().await.expect("it closes");
    }
}

pub(crate) async fn nobody_is_there_is_an_error(ranks: &mut Ranks<'_>) {
    let mpi = Mpi::default();
    let other = ranks.membership.address((ranks.rank() + 1) % ranks.size(), 4_000_000_000);
    let error = mpi.connect(&other).await.expect_err("nobody listens there");
    assert!(
        matches!(error, Error::Connect { .. }) && error.to_string().contains("nobody listens"),
        "{error}"
    );
    let beyond = ranks.membership.address(ranks.size(), PORT);
    let error = mpi.connect(&beyond).await.expect_err("there is no such rank");
    assert!(error.to_string().contains(&format!("no rank {}", ranks.size())), "{error}");
    assert!(!mpi.reaches(&beyond) && mpi.reaches(&other));
    let elsewhere = "mpi://0123456789abcdef/0:1".parse().expect("an address");
    let error = mpi.connect(&elsewhere).await.expect_err("that is another job");
    assert!(error.to_string().contains("another MPI job") && !mpi.reaches(&elsewhere), "{error}");
    let error = mpi.connect(&"mpi://localhost:80".parse().expect("an address")).await.expect_err("no place");
    assert!(matches!(error, Error::Address { .. }), "{error}");
    let error = mpi.listen(&other).await.err().expect("that is another rank's");
    assert!(matches!(error, Error::Listen { .. }), "{error}");
    let _listener = listen(PORT).await;
    let error = mpi.listen(&ranks.membership.address(ranks.rank(), PORT)).await.err().expect("it is taken");
    assert!(
        matches!(&error, Error::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse),
        "{error}"
    );
}

pub(crate) async fn another_thread_is_told_whose_turn_it_is(ranks: &mut Ranks<'_>) {
    let Some(mut connection) = ranks.pair().await else { return };
    if ranks.rank() == 1 {
        let elsewhere = thread::spawn(move || {
            let sent = futures::executor::block_on(connection.sender.send(Message::new("", vec![])));
            let error = sent.expect_err("it is not this thread's turn");
            let joined = Mpi::join().expect_err("another thread has joined");
            // The connection is dropped here, where MPI must not be called.
            (error.to_string(), joined.to_string())
        });
        let (error, joined) =
            tokio::task::spawn_blocking(|| elsewhere.join().expect("it ends")).await.expect("it ends");
        assert!(
            error.contains("the thread that joined") && joined.contains("the thread that joined"),
            "{error}, {joined}"
        );
    } else {
        is_lost(&mut connection).await;
    }
    ranks.steps_pair().await;
}

/// The launcher ends the job then, which is MPI's way.
pub(crate) async fn a_rank_is_killed(ranks: &mut Ranks<'_>) {
    ranks.step().await;
    if ranks.rank() == 1 {
        // SAFETY: ends this process, which holds nothing of others'.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
    sleep(Duration::from_secs(600)).await;
}

async fn is_lost(connection: &mut Connection) {
    let received = timeout(SOON, connection.receiver.recv()).await.expect("in bounded time");
    let received = received.map(|message| message.map(|message| message.nbytes()));
    assert!(matches!(received, Err(Error::Lost { .. })), "{received:?}");
}

/// What shows the number that rank 1 has for a connection.
fn name(ranks: &Ranks<'_>, connection: &Connection) -> Address {
    if ranks.rank() == 1 { connection.local.clone() } else { connection.peer.clone() }
}

/// What was under way may take a while to be received in vain. Each time there is one connection more, so that
/// the numbers of those before do not suffice.
async fn one_is_used_again(ranks: &mut Ranks<'_>, names: &HashSet<Address>) {
    for many in 1..100 {
        let mut connections = Vec::new();
        for _ in 0..many {
            connections.extend(ranks.pair().await);
        }
        ranks.steps_pair().await;
        if connections.iter().any(|connection| names.contains(&name(ranks, connection))) {
            return;
        }
        drop(connections);
        sleep(Duration::from_millis(10)).await;
    }
    panic!("none of {names:?} is used again");
}

impl Ranks<'_> {
    /// Ranks 0 and 1 wait for each other.
    async fn steps_pair(&mut self) {
        let Connection { sender, receiver, .. } = &mut self.steps[0];
        sender.send(Message::new("here", vec![])).await.expect("it sends");
        receiver.recv().await.expect("it receives").expect("a step");
    }
}
