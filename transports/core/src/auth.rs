//! Proof of a shared secret, before anything else is parsed.
//!
//! ```text
//! connecting                                 accepting
//!     magic, nonce c  ------------------------>
//!     <---------------------------  magic, nonce a
//!     HMAC(secret, "connecting" c a) --------->
//!     <----------------  verdict, HMAC(secret, "accepting" c a)
//! ```
//!
//! Each message has a fixed size and the receiver takes no other (see [`Limits::HANDSHAKE`]). The
//! nonces make every proof good for one connection, the labels make it good for one side.

use std::{fmt, io, time::Duration};

use hmac::{Hmac, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use tokio::time;

use crate::{Connection, Error, Limits, Message, Result};

const MAGIC: [u8; 8] = *b"RANKINE\x01";
const TIMEOUT: Duration = Duration::from_secs(10);

/// What the members of a cluster share.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 32]);

/// Which side of a connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It connected.
    Connecting,
    /// It was connected to.
    Accepting,
}

impl Secret {
    /// A new one, from the system's source of randomness.
    pub fn random() -> Self {
        let mut bytes = [0; 32];
        rand::RngCore::fill_bytes(&mut rand::rng(), &mut bytes);
        Self(bytes)
    }

    /// As 64 hexadecimal digits, for files that only their owner reads.
    pub fn to_hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// From what [`to_hex`](Self::to_hex) wrote.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }

    fn prove(&self, side: Side, nonces: &[[u8; 32]; 2]) -> [u8; 32] {
        // HMAC takes keys of any length.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else { return [0; 32] };
        mac.update(match side {
            Side::Connecting => b"connecting",
            Side::Accepting => b"accepting",
        });
        mac.update(&nonces[0]);
        mac.update(&nonces[1]);
        mac.finalize().into_bytes().into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Proves the secret to the peer and has it proved. Only then does the connection take more than
/// handshake messages. Run it apart from accepting others: a silent visitor is given 10 s.
///
/// # Errors
/// If the peer has another secret, speaks another protocol, leaves, or is silent.
pub async fn authenticate(connection: &mut Connection, secret: &Secret, side: Side) -> Result<()> {
    let peer = connection.peer.clone();
    let exchange = async {
        let mine: [u8; 32] = rand::random();
        send(connection, &[&MAGIC[..], &mine]).await?;
        let greeting = receive::<40>(connection).await?;
        if greeting[..8] != MAGIC {
            return Err(Error::protocol(&peer, "it does not speak this version of Rankine's protocol"));
        }
        let mut theirs = [0; 32];
        theirs.copy_from_slice(&greeting[8..]);
        let refuse = |reason: &str| Err(Error::Secret { peer: peer.clone(), reason: reason.into() });
        match side {
            Side::Connecting => {
                let nonces = [mine, theirs];
                send(connection, &[&secret.prove(Side::Connecting, &nonces)]).await?;
                let verdict = receive::<33>(connection).await?;
                if verdict[0] != 1 {
                    return refuse("it refused the proof of this side");
                }
                if !bool::from(verdict[1..].ct_eq(&secret.prove(Side::Accepting, &nonces))) {
                    return refuse("its own proof is wrong");
                }
            }
            Side::Accepting => {
                let nonces = [theirs, mine];
                let proof = receive::<32>(connection).await?;
                if !bool::from(proof.ct_eq(&secret.prove(Side::Connecting, &nonces))) {
                    send(connection, &[&[0; 33]]).await?;
                    return refuse("its proof is wrong");
                }
                send(connection, &[&[1], &secret.prove(Side::Accepting, &nonces)]).await?;
            }
        }
        connection.receiver.set_limits(Limits::PEER);
        Ok(())
    };
    time::timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| {
        let reason = format!("it did not prove the secret within {TIMEOUT:?}");
        Err(Error::lost(&connection.peer, io::Error::new(io::ErrorKind::TimedOut, reason)))
    })
}

async fn send(connection: &mut Connection, parts: &[&[u8]]) -> Result<()> {
    connection.sender.send(Message::new(parts.concat(), Vec::new())).await
}

async fn receive<const N: usize>(connection: &mut Connection) -> Result<[u8; N]> {
    let message = connection.receiver.recv().await?;
    let head = message.map(|m| m.head).unwrap_or_default();
    head[..].try_into().map_err(|_| Error::protocol(&connection.peer, "its handshake has the wrong size"))
}
