//! Which messages change what the other side knows, where a scheduler may die and be restored.

use super::{FromClient, FromWorker, ToClient, ToWorker};

/// Messages of which some change what the other side knows: where the scheduler keeps a journal, these are numbered, so
/// that none is lost and none comes twice when it is restored.
pub(crate) trait Numbered {
    /// Whether this one changes anything.
    fn is_numbered(&self) -> bool;
}

impl Numbered for FromClient {
    fn is_numbered(&self) -> bool {
        match self {
            Self::Ask { query, .. } => query.is_for_the_machine(),
            message => !matches!(message, Self::Alive),
        }
    }
}

impl Numbered for ToClient {
    // Whoever waits for an answer when the scheduler dies is told that none will come.
    fn is_numbered(&self) -> bool {
        use ToClient::{Alive, Answer, Closing, Noted, Resumed, Welcome};
        !matches!(self, Welcome { .. } | Answer { .. } | Alive | Closing { .. } | Noted(_) | Resumed { .. })
    }
}

impl Numbered for FromWorker {
    fn is_numbered(&self) -> bool {
        !matches!(self, Self::Ran { .. } | Self::Heartbeat(_) | Self::Leaving)
    }
}

impl Numbered for ToWorker {
    fn is_numbered(&self) -> bool {
        !matches!(self, Self::Run { .. } | Self::Alive | Self::Noted(_) | Self::Resumed { .. })
    }
}

/// How a restored scheduler answers who returns.
pub(crate) trait Resumed {
    /// How many of the returning member's messages its journal has, if this is that answer.
    fn resumed(&self) -> Option<u64>;
}

impl Resumed for ToWorker {
    fn resumed(&self) -> Option<u64> {
        if let Self::Resumed { noted } = self { Some(*noted) } else { None }
    }
}

impl Resumed for ToClient {
    fn resumed(&self) -> Option<u64> {
        if let Self::Resumed { noted } = self { Some(*noted) } else { None }
    }
}
