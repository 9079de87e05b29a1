//! What can go wrong between two peers.

use std::io;

use crate::Address;

/// An error of a transport: what was attempted, on what, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address is not `scheme://place`.
    #[error("cannot read the address {given:?}: {reason}; write it like tcp://host:port")]
    Address {
        /// What was given.
        given: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No transport of this process answers to the scheme.
    #[error("no transport for {address}: this program has {present}{hint}")]
    Scheme {
        /// The address asked for.
        address: Address,
        /// The schemes that are there.
        present: String,
        /// What would bring the one asked for.
        hint: &'static str,
    },
    /// The transport does not work on this machine or in this process.
    #[error("cannot use {address}: {reason}")]
    Unavailable {
        /// The address asked for.
        address: Address,
        /// What is missing, and what would change that.
        reason: String,
    },
    /// What a transport was told to use is not there or not right.
    #[error("cannot {attempt}: {reason}")]
    Setup {
        /// What was attempted, on what.
        attempt: String,
        /// Why it cannot be.
        reason: String,
    },
    /// No encrypted connection came about.
    #[error(
        "no TLS connection with {peer}: {reason}; both sides need TLS on, and certificates that the same          --tls-ca signed and that bear the names or addresses by which they are reached"
    )]
    Tls {
        /// The other side.
        peer: Address,
        /// What went wrong.
        reason: String,
    },
    /// Connecting failed.
    #[error(
        "cannot connect to {address}: {source}; is the peer running there, and reachable from this host?"
    )]
    Connect {
        /// The address asked for.
        address: Address,
        /// The system's reason.
        source: io::Error,
    },
    /// Listening failed.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: Address,
        /// The system's reason.
        source: io::Error,
    },
    /// The connection broke: the peer died, the link went, or this side gave up.
    #[error("lost the connection to {peer}: {source}")]
    Lost {
        /// The other side.
        peer: Address,
        /// The system's reason.
        source: io::Error,
    },
    /// The peer sent what the protocol does not allow; the connection is of no more use.
    #[error("refused what {peer} sent: {reason}")]
    Protocol {
        /// The other side.
        peer: Address,
        /// What was wrong with it.
        reason: String,
    },
    /// The peer did not prove the cluster's secret, or did not accept ours.
    #[error(
        "{peer} does not share this cluster's secret: {reason}; use the scheduler file of the cluster you mean"
    )]
    Secret {
        /// The other side.
        peer: Address,
        /// Which side refused, and at what.
        reason: String,
    },
    /// A value that only lives within a process was sent to another one.
    #[error("a value that cannot leave its process was to be sent to {peer}")]
    Object {
        /// The other side.
        peer: Address,
    },
}

impl Error {
    /// The connection to `peer` ended although more was expected.
    pub fn lost(peer: &Address, source: io::Error) -> Self {
        Self::Lost { peer: peer.clone(), source }
    }

    /// `peer` broke the protocol.
    pub fn protocol(peer: &Address, reason: impl Into<String>) -> Self {
        Self::Protocol { peer: peer.clone(), reason: reason.into() }
    }
}

/// A result of a transport.
pub type Result<T, E = Error> = std::result::Result<T, E>;
