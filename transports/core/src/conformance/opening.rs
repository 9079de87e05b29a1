//! Listening, connecting, and who is let in.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::{address, expect, pattern, strangers};
use crate::{Error, Message, Secret, Side, Transport, authenticate};

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

/// One of an earlier or later version, or of something else.
pub async fn who_speaks_another_version_is_refused(transport: &dyn Transport, place: &str) {
    let (_listener, mut ours, mut theirs) = strangers(transport, place).await;
    let secret = Secret::random();
    let greet = async {
        let greeting = [&b"RANKINE\x00"[..], &[7; 32]].concat();
        ours.sender.send(Message::new(greeting, vec![])).await.expect("it sends");
        ours
    };
    let (_ours, refused) = tokio::join!(greet, authenticate(&mut theirs, &secret, Side::Accepting));
    let error = refused.expect_err("another version");
    assert!(matches!(error, Error::Protocol { .. }) && error.to_string().contains("version"), "{error}");
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

/// Also those whom it had not taken in yet.
pub async fn a_listener_that_goes_takes_its_visitors_with_it(transport: &dyn Transport, place: &str) {
    let listener = transport.listen(&address(place)).await.expect("it listens");
    let at = listener.address().clone();
    // Some transports connect to who listens, others to who accepts.
    let Ok(connected) = timeout(Duration::from_millis(300), transport.connect(&at)).await else { return };
    let mut ours = connected.expect("it connects");
    drop(listener);
    let received = timeout(Duration::from_secs(5), ours.receiver.recv()).await.expect("in bounded time");
    assert!(matches!(received, Err(Error::Lost { .. })), "{received:?}");
}

/// Futures dropped while somebody comes.
pub async fn a_cancelled_accept_loses_nobody(transport: &dyn Transport, place: &str) {
    let mut listener = transport.listen(&address(place)).await.expect("it listens");
    let at = listener.address().clone();
    let accept = async {
        let mut taken = Vec::new();
        while taken.len() < 10 {
            let polled = futures::future::poll_fn(|cx| {
                let accept = listener.accept();
                futures::pin_mut!(accept);
                std::task::Poll::Ready(accept.poll(cx))
            })
            .await;
            match polled {
                std::task::Poll::Ready(connection) => taken.push(connection.expect("it accepts")),
                std::task::Poll::Pending => tokio::task::yield_now().await,
            }
        }
        taken
    };
    let connect = async {
        let mut made = Vec::new();
        for i in 0..10u8 {
            let mut ours = transport.connect(&at).await.expect("it connects");
            ours.sender.send(Message::new(vec![i], vec![])).await.expect("it sends");
            made.push(ours);
        }
        made
    };
    let (mut taken, _made) = tokio::join!(accept, connect);
    let mut said = Vec::new();
    for theirs in &mut taken {
        said.push(expect(theirs).await.head[0]);
    }
    said.sort_unstable();
    assert_eq!(said, (0..10).collect::<Vec<u8>>());
}

/// Who gave up is a visitor that went, or was never there.
pub async fn a_cancelled_connect_harms_nobody(transport: &dyn Transport, place: &str) {
    let mut listener = transport.listen(&address(place)).await.expect("it listens");
    let at = listener.address().clone();
    for turns in 0..10u32 {
        let connecting = transport.connect(&at);
        futures::pin_mut!(connecting);
        for _ in 0..turns {
            let polled =
                futures::future::poll_fn(|cx| std::task::Poll::Ready(connecting.as_mut().poll(cx))).await;
            if polled.is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let connect = async {
        let mut ours = transport.connect(&at).await.expect("it connects");
        ours.sender.send(Message::new("here", vec![])).await.expect("it sends");
        ours
    };
    let find = async {
        loop {
            // Those who gave up are errors, or say nothing any more.
            let Ok(mut theirs) = listener.accept().await else { continue };
            if let Ok(Some(message)) = theirs.receiver.recv().await {
                return message;
            }
        }
    };
    let (_ours, message) = tokio::join!(connect, find);
    assert_eq!(&message.head[..], b"here");
}

/// As far as the transport can tell; others' addresses are not.
pub async fn a_listener_is_within_reach(transport: &dyn Transport, place: &str) {
    let listener = transport.listen(&address(place)).await.expect("it listens");
    assert_eq!(listener.address().scheme(), transport.scheme());
    assert!(transport.reaches(listener.address()));
    assert!(!transport.reaches(&address("other://place")));
    let survey = transport.survey().expect("it works here");
    assert!(!survey.is_empty() && survey.iter().all(|line| !line.contains('\n')), "{survey:?}");
    assert_eq!(transport.anywhere().scheme(), transport.scheme());
}
