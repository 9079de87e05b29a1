//! Links to a scheduler that may die and be restored from its journal.
//!
//! Both ends number the messages that change anything. A worker or client keeps those that the scheduler has not
//! noted in its journal yet; when it finds a restored scheduler it says how many it has received, is told how many of
//! its own were noted, and both go on from there: nothing is lost and nothing comes twice.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    time::{Duration, Instant},
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::{sync::Notify, time};

use super::{Endpoint, Inbox, Outbox, split};
use crate::{
    Error, Result,
    protocol::{Hello, Member, Numbered, Resumed},
};

/// Messages that the other side has not received for sure.
#[derive(Debug)]
pub(crate) struct Kept<M> {
    messages: VecDeque<M>,
    /// The number of the first of them: so many came before.
    first: u64,
}

impl<M> Default for Kept<M> {
    fn default() -> Self {
        Self { messages: VecDeque::new(), first: 0 }
    }
}

impl<M: Numbered> Kept<M> {
    /// Keeps a message, if it is numbered.
    pub(crate) fn put(&mut self, message: M) {
        if message.is_numbered() {
            self.messages.push_back(message);
        }
    }

    /// The other side has received so many, counted from the very first. Says whether that can be.
    pub(crate) fn received(&mut self, count: u64) -> bool {
        let Some(more) = count.checked_sub(self.first) else { return false };
        if more > self.messages.len() as u64 {
            return false;
        }
        self.messages.drain(..more as usize);
        self.first = count;
        true
    }

    /// The other side has received what `is_it` tells of, and all that was said before.
    pub(crate) fn received_up_to(&mut self, is_it: impl Fn(&M) -> bool) {
        if let Some(place) = self.messages.iter().position(is_it) {
            self.messages.drain(..=place);
            self.first += place as u64 + 1;
        }
    }

    /// What is kept.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &M> {
        self.messages.iter()
    }
}

/// How long a scheduler that died is waited for.
const AWAY: Duration = Duration::from_secs(600);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(200);

/// A worker's or client's end of its link to the scheduler.
pub(crate) struct Upstream<M> {
    outbox: RefCell<Outbox<M>>,
    /// Where the scheduler keeps a journal.
    kept: RefCell<Option<Kept<M>>>,
    received: Cell<u64>,
    relinked: Notify,
}

impl<M: Numbered + Clone> Upstream<M> {
    /// The end of a new link; `journals` is whether the scheduler keeps a journal.
    pub(crate) fn new(outbox: Outbox<M>, journals: bool) -> Self {
        Self {
            outbox: RefCell::new(outbox),
            kept: RefCell::new(journals.then(Kept::default)),
            received: Cell::new(0),
            relinked: Notify::new(),
        }
    }

    /// Whether values travel as they are.
    pub(crate) fn carries_objects(&self) -> bool {
        self.outbox.borrow().carries_objects
    }

    /// Puts a message; where the scheduler is away and may come back, for then.
    pub(crate) fn put(&self, message: M) {
        if let Some(kept) = &mut *self.kept.borrow_mut()
            && message.is_numbered()
        {
            kept.put(message.clone());
        }
        self.outbox.borrow().put(message);
    }

    /// The scheduler's next message is here.
    pub(crate) fn count<N: Numbered>(&self, message: &N) {
        self.received.set(self.received.get() + u64::from(message.is_numbered()));
    }

    /// The scheduler has noted so many messages, or, for `None`, will never note more.
    pub(crate) fn noted(&self, count: Option<u64>) {
        let mut kept = self.kept.borrow_mut();
        match count {
            Some(count) => drop(kept.as_mut().map(|kept| kept.received(count))),
            None => *kept = None,
        }
    }

    /// Whether the scheduler may come back after its death.
    pub(crate) fn outlives_the_scheduler(&self) -> bool {
        self.kept.borrow().is_some()
    }

    /// How many numbered messages have come.
    pub(crate) fn received(&self) -> u64 {
        self.received.get()
    }

    /// The scheduler is back and has noted so many messages: the others are put again. Says whether that can be.
    pub(crate) fn relink(&self, outbox: Outbox<M>, noted: u64) -> bool {
        let mut kept = self.kept.borrow_mut();
        let Some(kept) = &mut *kept else { return false };
        if !kept.received(noted) {
            return false;
        }
        kept.iter().for_each(|message| outbox.put(message.clone()));
        *self.outbox.borrow_mut() = outbox;
        self.relinked.notify_waiters();
        true
    }

    /// Waits for a scheduler that died to come back, looking where it was; goes on where it stood. `looks` is told of
    /// each look.
    ///
    /// # Errors
    /// `lost`, if it does not come back in time or does not know this member.
    pub(crate) async fn rejoin<N>(
        &self,
        endpoint: &Endpoint,
        contact: &str,
        member: Member,
        lost: Error,
        looks: impl Fn(),
    ) -> Result<Inbox<N>>
    where
        M: Serialize + Send + 'static,
        N: DeserializeOwned + Resumed + Send + 'static,
    {
        tracing::warn!(error = %lost, "the scheduler is gone; it is waited for, since it keeps a journal");
        let start = Instant::now();
        while start.elapsed() < AWAY {
            looks();
            let hello = Hello::Returning { member, received: self.received() };
            let Ok((connection, _)) = endpoint.join(contact, hello).await else {
                time::sleep(LOOK).await;
                continue;
            };
            let (outbox, mut inbox) = split::<M, N>(connection, endpoint.compression);
            let Ok(Some(messages)) = inbox.recv().await else {
                time::sleep(LOOK).await;
                continue;
            };
            let noted = messages.first().and_then(Resumed::resumed);
            inbox.unread(messages);
            let known = noted.is_some_and(|noted| self.relink(outbox, noted));
            return if known { Ok(inbox) } else { Err(lost) };
        }
        Err(lost)
    }

    /// Waits until all that was put is being sent; while the scheduler is away, until it is back.
    pub(crate) async fn drained(&self) {
        loop {
            let outbox = self.outbox.borrow().clone();
            outbox.drained().await;
            if !outbox.is_broken() || !self.outlives_the_scheduler() {
                return;
            }
            self.relinked.notified().await;
        }
    }

    /// Waits until all is sent and closed, or cannot be.
    pub(crate) async fn closed(&self) {
        let outbox = self.outbox.borrow().clone();
        outbox.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Numbered for u32 {
        fn is_numbered(&self) -> bool {
            *self < 100
        }
    }

    #[test]
    fn what_was_received_is_not_kept() {
        let mut kept = Kept::default();
        [1, 2, 100, 3].into_iter().for_each(|message| kept.put(message));
        assert_eq!(kept.iter().copied().collect::<Vec<_>>(), [1, 2, 3]);
        assert!(kept.received(1) && kept.received(1));
        assert_eq!(kept.iter().copied().collect::<Vec<_>>(), [2, 3]);
        kept.received_up_to(|message| *message == 2);
        assert_eq!(kept.iter().copied().collect::<Vec<_>>(), [3]);
        // More than was ever said, or less than was known to be received.
        assert!(!kept.received(4) && !kept.received(1));
        assert!(kept.received(3) && kept.iter().next().is_none());
    }
}
