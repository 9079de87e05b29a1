//! How two queue pairs find each other: over a TCP connection, the side channel, which then stays open.
//!
//! ```text
//! connecting                                 accepting
//!     hello ----------------------------------->  checked before anything is made
//!     <-----------------------------------  hello     both queue pairs receive and send now
//!     verdict --------------------------------->
//!     <---------------------------------  verdict
//! ```
//!
//! A hello has a fixed size. A verdict is one byte, the length of the reason why this side cannot go on, and the reason;
//! 0 if it can. Nobody sends before both verdicts are there, so nothing reaches a queue pair that is not ready.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::device::{Device, Link};

/// The protocol and its version.
const MAGIC: [u8; 8] = *b"RKNVRB\x00\x01";
/// Bytes of a hello.
pub(crate) const HELLO: usize = 48;

/// What a queue pair is reached by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Its number.
    pub(crate) number: u32,
    /// The sequence number of its first packet.
    pub(crate) packet: u32,
    pub(crate) link: Link,
    pub(crate) lid: u16,
    pub(crate) gid: [u8; 16],
    /// As verbs write it, 1 to 5.
    pub(crate) mtu: u8,
    /// READs that its device has under way at once.
    pub(crate) issues: u8,
    /// READs that its device serves at once.
    pub(crate) serves: u8,
    /// Bytes of its port's longest message.
    pub(crate) max_message: u32,
}

impl Endpoint {
    pub(crate) fn new(device: &Device, number: u32) -> Self {
        Self {
            number,
            packet: rand::random::<u32>() & 0xff_ffff,
            link: device.port.link,
            lid: device.port.lid,
            gid: device.gid.map_or([0; 16], |gid| gid.raw),
            mtu: device.port.mtu,
            issues: device.read_depth[0],
            serves: device.read_depth[1],
            max_message: device.port.max_message,
        }
    }

    pub(crate) fn encode(&self) -> [u8; HELLO] {
        let mut hello = [0; HELLO];
        let ethernet = u8::from(self.link == Link::Ethernet);
        let parts: [&[u8]; 9] = [
            &MAGIC,
            &self.number.to_le_bytes(),
            &self.packet.to_le_bytes(),
            &self.max_message.to_le_bytes(),
            &self.lid.to_le_bytes(),
            &[ethernet, self.mtu, self.issues, self.serves],
            &[0; 2],
            &self.gid,
            &[0; 4],
        ];
        let mut at = 0;
        for part in parts {
            hello[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        hello
    }

    /// # Errors
    /// If no queue pair has such an endpoint.
    pub(crate) fn decode(hello: &[u8; HELLO]) -> Result<Self, String> {
        if hello[..6] != MAGIC[..6] {
            return Err("it does not begin like a side channel of Rankine's verbs transport".into());
        }
        if hello[..8] != MAGIC {
            return Err("it speaks another version of Rankine's verbs protocol".into());
        }
        let number = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&hello[at..at + 4]);
            u32::from_le_bytes(bytes)
        };
        let mut gid = [0; 16];
        gid.copy_from_slice(&hello[28..44]);
        let endpoint = Self {
            number: number(8),
            packet: number(12),
            max_message: number(16),
            lid: u16::from_le_bytes([hello[20], hello[21]]),
            link: if hello[22] == 1 { Link::Ethernet } else { Link::InfiniBand },
            mtu: hello[23],
            issues: hello[24],
            serves: hello[25],
            gid,
        };
        let wrong = endpoint.number > 0xff_ffff
            || endpoint.packet > 0xff_ffff
            || hello[22] > 1
            || !(1..=5).contains(&endpoint.mtu)
            || endpoint.issues == 0
            || endpoint.serves == 0
            || endpoint.max_message < 1 << 16;
        if wrong { Err("its queue pair has figures that none has".into()) } else { Ok(endpoint) }
    }

    /// Whether a device on this link reaches it.
    ///
    /// # Errors
    /// If it does not, with the reason.
    pub(crate) fn check(&self, device: &Device) -> Result<(), String> {
        let (mine, theirs) = (device.port.link, self.link);
        if mine == theirs {
            return Ok(());
        }
        Err(format!("{} is on {mine}, the peer on {theirs}: choose devices of one fabric", device.name()))
    }
}

/// Sends a hello.
pub(crate) async fn send_hello(stream: &mut TcpStream, endpoint: &Endpoint) -> io::Result<()> {
    stream.write_all(&endpoint.encode()).await
}

/// Receives the peer's hello. The inner error is what is wrong with it.
pub(crate) async fn receive_hello(stream: &mut TcpStream) -> io::Result<Result<Endpoint, String>> {
    let mut hello = [0; HELLO];
    // A peer that cannot even begin tells why in place of its hello.
    stream.read_exact(&mut hello[..8]).await?;
    if hello[..8] == REFUSAL {
        let reason = receive_verdict(stream).await?;
        return Ok(Err(reason.err().unwrap_or_else(|| "it refused without a reason".into())));
    }
    stream.read_exact(&mut hello[8..]).await?;
    Ok(Endpoint::decode(&hello))
}

/// What stands in place of a hello where none is made.
const REFUSAL: [u8; 8] = *b"RKNVRB\x00\x00";

/// Tells the peer in place of a hello why there will be none.
pub(crate) async fn refuse(stream: &mut TcpStream, reason: &str) -> io::Result<()> {
    stream.write_all(&REFUSAL).await?;
    send_verdict(stream, Err(reason)).await
}

/// Tells the peer whether this side can go on.
pub(crate) async fn send_verdict(stream: &mut TcpStream, verdict: Result<(), &str>) -> io::Result<()> {
    let reason = verdict.err().unwrap_or("");
    let end = (0..=reason.len().min(255)).rev().find(|end| reason.is_char_boundary(*end)).unwrap_or(0);
    let mut bytes = vec![end as u8];
    bytes.extend_from_slice(&reason.as_bytes()[..end]);
    stream.write_all(&bytes).await
}

/// Whether the peer can go on; the inner error is why not.
pub(crate) async fn receive_verdict(stream: &mut TcpStream) -> io::Result<Result<(), String>> {
    let length = usize::from(stream.read_u8().await?);
    let mut reason = vec![0; length];
    stream.read_exact(&mut reason).await?;
    let reason = String::from_utf8_lossy(&reason).into_owned();
    Ok(if length == 0 { Ok(()) } else { Err(reason) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_endpoint_comes_as_it_went() {
        let endpoint = Endpoint {
            number: 17,
            packet: 0xff_fffe,
            link: Link::Ethernet,
            lid: 3,
            gid: *b"0123456789abcdef",
            mtu: 5,
            issues: 16,
            serves: 1,
            max_message: 1 << 23,
        };
        assert_eq!(Endpoint::decode(&endpoint.encode()), Ok(endpoint));
    }

    proptest! {
        #[test]
        fn any_hello_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), HELLO), known: bool) {
            let mut hello = [0; HELLO];
            hello.copy_from_slice(&bytes);
            if known {
                hello[..8].copy_from_slice(&MAGIC);
            }
            if let Ok(endpoint) = Endpoint::decode(&hello) {
                prop_assert!(known && endpoint.number <= 0xff_ffff && (1..=5).contains(&endpoint.mtu));
            }
        }
    }
}
