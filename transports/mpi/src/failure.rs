//! Why a direction of a connection is of no more use, told as often as it is asked.

use std::{borrow::Cow, io};

use rankine_transport::{Address, Error};

/// What went wrong.
#[derive(Debug, Clone)]
pub(crate) enum Failure {
    /// The connection broke.
    Lost { kind: io::ErrorKind, why: Cow<'static, str> },
    /// The peer sent what is not allowed.
    Protocol { reason: String },
}

impl Failure {
    pub(crate) fn lost(kind: io::ErrorKind, why: impl Into<Cow<'static, str>>) -> Self {
        Self::Lost { kind, why: why.into() }
    }

    /// The error of a call on the connection to `peer`.
    pub(crate) fn of(self, peer: &Address) -> Error {
        match self {
            Self::Lost { kind, why } => Error::lost(peer, io::Error::new(kind, why)),
            Self::Protocol { reason } => Error::protocol(peer, reason),
        }
    }
}
