//! The client for programs without async: the same methods, waiting on the calling thread.
//!
//! What does not wait (`submit`, `map`, `options`, `cancel`, ...) is that of [`super::Client`],
//! which this one dereferences to; [`TaskFuture::result`] waits for a single result.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashMap},
    ops::Deref,
    sync::Arc,
    time::Duration,
};

use super::{AsCompleted, Client as AsyncClient, ReturnWhen, TaskFuture, block_on};
use crate::{
    Result,
    graph::Key,
    protocol::{Explanation, SchedulerInfo, StoryEvent},
    task::{Data, Entry, HasEntry, IntoArgs, TaskFn},
};

/// A connection to a cluster whose methods wait on the calling thread.
#[derive(Clone)]
pub struct Client(AsyncClient);

impl From<AsyncClient> for Client {
    fn from(client: AsyncClient) -> Self {
        Self(client)
    }
}

impl Deref for Client {
    type Target = AsyncClient;

    fn deref(&self) -> &AsyncClient {
        &self.0
    }
}

macro_rules! twins {
    ($($(#[$doc:meta])* fn $method:ident $(<$($T:ident $(: $bound:path)?),*>)? ($($name:ident: $type:ty),*) -> $result:ty;)*) => {
        impl Client {$(
            $(#[$doc])*
            pub fn $method $(<$($T $(: $bound)?),*>)? (&self, $($name: $type),*) -> $result {
                block_on(self.0.$method($($name),*))
            }
        )*}
    };
}

twins! {
    /// [`super::Client::scatter`], blocking.
    ///
    /// # Errors
    /// As there.
    fn scatter<T: Data>(values: impl IntoIterator<Item = T>) -> Result<Vec<TaskFuture<T>>>;
    /// [`super::Client::broadcast`], blocking.
    ///
    /// # Errors
    /// As there.
    fn broadcast<T: Data>(value: T) -> Result<TaskFuture<T>>;
    /// [`super::Client::who_has`], blocking.
    ///
    /// # Errors
    /// As there.
    fn who_has<T>(futures: &[TaskFuture<T>]) -> Result<HashMap<Key, Vec<Arc<str>>>>;
    /// [`super::Client::has_what`], blocking.
    ///
    /// # Errors
    /// As there.
    fn has_what() -> Result<BTreeMap<Arc<str>, Vec<Key>>>;
    /// [`super::Client::nthreads`], blocking.
    ///
    /// # Errors
    /// As there.
    fn nthreads() -> Result<BTreeMap<Arc<str>, u32>>;
    /// [`super::Client::scheduler_info`], blocking.
    ///
    /// # Errors
    /// As there.
    fn scheduler_info() -> Result<SchedulerInfo>;
    /// [`super::Client::wait_for_workers`], blocking.
    ///
    /// # Errors
    /// As there.
    fn wait_for_workers(count: usize) -> Result<()>;
    /// [`super::Client::story`], blocking.
    ///
    /// # Errors
    /// As there.
    fn story(key: Key) -> Result<Vec<StoryEvent>>;
    /// [`super::Client::explain`], blocking.
    ///
    /// # Errors
    /// As there.
    fn explain<T>(future: &TaskFuture<T>) -> Result<Explanation>;
    /// [`super::Client::limit`], blocking.
    ///
    /// # Errors
    /// As there.
    fn limit(name: impl Into<String>, most: Option<u32>) -> Result<()>;
    /// [`super::Client::replicate`], blocking.
    ///
    /// # Errors
    /// As there.
    fn replicate<T>(futures: &[TaskFuture<T>], count: Option<usize>, workers: &[&str]) -> Result<()>;
    /// [`super::Client::rebalance`], blocking.
    ///
    /// # Errors
    /// As there.
    fn rebalance() -> Result<()>;
    /// [`super::Client::close`], blocking.
    fn close() -> ();
    /// [`super::Client::shutdown`], blocking.
    ///
    /// # Errors
    /// As there.
    fn shutdown() -> Result<()>;
}

impl Client {
    /// [`super::Client::retire_workers`], blocking.
    ///
    /// # Errors
    /// As there.
    pub fn retire_workers<W: Into<String>>(
        &self,
        workers: impl IntoIterator<Item = W>,
    ) -> Result<Vec<Arc<str>>> {
        block_on(self.0.retire_workers(workers))
    }

    /// [`super::Client::gather`], blocking.
    ///
    /// # Errors
    /// As there.
    pub fn gather<T: Data + Clone>(
        &self,
        futures: impl IntoIterator<Item = impl Borrow<TaskFuture<T>>>,
    ) -> Result<Vec<T>> {
        block_on(self.0.gather(futures))
    }

    /// [`super::Client::wait`], blocking.
    ///
    /// # Errors
    /// As there.
    pub fn wait<T: 'static>(
        &self,
        futures: &[TaskFuture<T>],
        until: ReturnWhen,
        timeout: Option<Duration>,
    ) -> Result<()> {
        block_on(self.0.wait(futures, until, timeout))
    }

    /// [`super::Client::as_completed`] as an iterator that waits for each.
    pub fn as_completed<T: 'static>(&self, futures: impl IntoIterator<Item = TaskFuture<T>>) -> Completed<T> {
        Completed(self.0.as_completed(futures))
    }

    /// [`super::Client::run`], blocking.
    ///
    /// # Errors
    /// As there.
    pub fn run<F, P, A, M>(&self, function: F, arguments: A) -> Result<BTreeMap<Arc<str>, F::Output>>
    where
        F: TaskFn<P, M>,
        F::Output: Clone,
        A: IntoArgs<P>,
        Entry<F, P, A::Repr, M>: HasEntry,
    {
        block_on(self.0.run(function, arguments))
    }

    /// [`super::Client::run_on_scheduler`], blocking.
    ///
    /// # Errors
    /// As there.
    pub fn run_on_scheduler<F, P, A, M>(&self, function: F, arguments: A) -> Result<F::Output>
    where
        F: TaskFn<P, M>,
        F::Output: Clone,
        A: IntoArgs<P>,
        Entry<F, P, A::Repr, M>: HasEntry,
    {
        block_on(self.0.run_on_scheduler(function, arguments))
    }
}

/// Futures in the order in which they are done; the iterator waits for each.
pub struct Completed<T>(AsCompleted<T>);

impl<T: 'static> Completed<T> {
    /// Takes one more future.
    pub fn add(&mut self, future: TaskFuture<T>) {
        self.0.add(future);
    }
}

impl<T: 'static> Iterator for Completed<T> {
    type Item = TaskFuture<T>;

    fn next(&mut self) -> Option<TaskFuture<T>> {
        block_on(self.0.next())
    }
}
