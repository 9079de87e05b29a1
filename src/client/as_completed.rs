//! Futures in the order in which they are done.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures::{Stream, StreamExt, future::BoxFuture, stream::FuturesUnordered};

use super::TaskFuture;

/// A stream (and, blocking, an iterator) of futures in the order in which they are done, whatever
/// their outcome. It takes new futures while it runs and ends when it has none left.
pub struct AsCompleted<T> {
    pending: FuturesUnordered<BoxFuture<'static, TaskFuture<T>>>,
}

impl<T: 'static> AsCompleted<T> {
    pub(super) fn new(futures: impl IntoIterator<Item = TaskFuture<T>>) -> Self {
        let mut this = Self { pending: FuturesUnordered::new() };
        futures.into_iter().for_each(|future| this.add(future));
        this
    }

    /// Takes one more future.
    pub fn add(&mut self, future: TaskFuture<T>) {
        self.pending.push(Box::pin(async move {
            future.done().await;
            future
        }));
    }

    /// The next future that is done; `None` when there are no more.
    pub async fn next(&mut self) -> Option<TaskFuture<T>> {
        self.pending.next().await
    }

    /// How many are not yet yielded.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether all are yielded.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

impl<T: 'static> Stream for AsCompleted<T> {
    type Item = TaskFuture<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<TaskFuture<T>>> {
        self.pending.poll_next_unpin(cx)
    }
}
