//! Typed handles of results on the cluster.

use std::{
    fmt,
    future::{Future, IntoFuture, poll_fn},
    marker::PhantomData,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use smallvec::SmallVec;

use super::{Command, Shared};
use crate::{
    Error, Result,
    graph::Key,
    protocol::{TaskId, WorkerId},
    task::{
        ArgEncoder, ByFuture, ByFutures, ByShared, ByShareds, Data, IntoArg, TaskError, Value, write_many,
    },
};

/// Bytes of a small result.
const SMALL: u64 = 64 << 10;

/// A result on the cluster, there already or to come.
///
/// Await it (or a reference to it) for the result itself; pass it (or a reference, or a vector of
/// them) as an argument and the data goes from worker to worker. Clones stand for the same result;
/// when the last one is dropped the cluster releases it.
pub struct TaskFuture<T> {
    pub(super) state: Arc<KeyState>,
    pub(super) client: Arc<Shared>,
    result: PhantomData<fn() -> T>,
}

/// How a future stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Not computed yet.
    Pending,
    /// The result is in the memory of a worker.
    Finished,
    /// The task, or one it depends on, failed.
    Erred,
    /// It was cancelled.
    Cancelled,
    /// The cluster is gone.
    Lost,
}

/// What a client knows of one key, shared by all futures of it.
pub(crate) struct KeyState {
    pub(crate) key: Key,
    pub(crate) handles: AtomicUsize,
    inner: Mutex<Inner>,
}

struct Inner {
    standing: Standing,
    wakers: SmallVec<[Waker; 1]>,
}

#[derive(Clone)]
pub(crate) enum Standing {
    Pending,
    Memory { id: TaskId, worker: WorkerId, nbytes: u64, value: Option<Value> },
    Erred(TaskError),
    Cancelled,
    Closed(Arc<str>),
}

impl KeyState {
    pub(crate) fn new(key: Key) -> Self {
        let inner = Inner { standing: Standing::Pending, wakers: SmallVec::new() };
        Self { key, handles: AtomicUsize::new(0), inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, standing: Standing) {
        let wakers = {
            let mut inner = self.lock();
            inner.standing = standing;
            std::mem::take(&mut inner.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn standing(&self) -> Standing {
        self.lock().standing.clone()
    }

    /// Whether its result is there and so small that nobody minds keeping it a moment longer.
    pub(super) fn is_small(&self) -> bool {
        matches!(self.lock().standing, Standing::Memory { nbytes, .. } if nbytes <= SMALL)
    }

    fn poll_done(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.lock();
        if !matches!(inner.standing, Standing::Pending) {
            return Poll::Ready(());
        }
        if !inner.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            inner.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    pub(crate) async fn done(&self) {
        poll_fn(|cx| self.poll_done(cx)).await;
    }
}

impl<T> TaskFuture<T> {
    /// Takes a handle. The caller holds the client's table, so that nobody releases the key meanwhile.
    pub(super) fn new(state: Arc<KeyState>, client: Arc<Shared>) -> Self {
        state.handles.fetch_add(1, Ordering::Relaxed);
        Self { state, client, result: PhantomData }
    }

    /// The result's name on the cluster.
    pub fn key(&self) -> Key {
        self.state.key
    }

    /// How it stands, as far as this client was told.
    pub fn status(&self) -> Status {
        match self.state.standing() {
            Standing::Pending => Status::Pending,
            Standing::Memory { .. } => Status::Finished,
            Standing::Erred(_) => Status::Erred,
            Standing::Cancelled => Status::Cancelled,
            Standing::Closed(_) => Status::Lost,
        }
    }

    /// Whether nothing more is to be awaited: it is finished, erred or cancelled.
    pub fn is_done(&self) -> bool {
        self.status() != Status::Pending
    }

    /// Why it erred, if it did.
    pub fn error(&self) -> Option<TaskError> {
        match self.state.standing() {
            Standing::Erred(error) => Some(error),
            _ => None,
        }
    }

    /// Waits until it is done, without fetching the result.
    pub async fn done(&self) {
        self.state.done().await;
    }
}

impl<T: Data> TaskFuture<T> {
    /// The result, shared: within a process nothing is cloned.
    ///
    /// # Errors
    /// If the task failed or was cancelled, or the cluster is gone.
    pub async fn shared(&self) -> Result<Arc<T>> {
        Ok(self.client.value(&self.state).await?.get()?)
    }
}

impl<T: Data + Clone> TaskFuture<T> {
    /// Waits for the result on this thread: the blocking twin of awaiting it.
    ///
    /// # Errors
    /// If the task failed or was cancelled, or the cluster is gone.
    pub fn result(&self) -> Result<T> {
        futures::executor::block_on(self.fetch())
    }

    pub(super) async fn fetch(&self) -> Result<T> {
        Ok(self.client.value(&self.state).await?.into_inner()?)
    }
}

impl<T> Clone for TaskFuture<T> {
    fn clone(&self) -> Self {
        // The one cloned keeps the key from being released.
        Self::new(self.state.clone(), self.client.clone())
    }
}

impl<T> Drop for TaskFuture<T> {
    fn drop(&mut self) {
        if self.state.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.client.release(&self.state);
        }
    }
}

impl<T> fmt::Debug for TaskFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = std::any::type_name::<T>();
        write!(f, "TaskFuture<{result}>({}, {:?})", self.state.key, self.status())
    }
}

/// The future that [`TaskFuture`] turns into when awaited.
pub type Awaited<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

impl<T: Data + Clone> IntoFuture for TaskFuture<T> {
    type Output = Result<T>;
    type IntoFuture = Awaited<T>;

    fn into_future(self) -> Awaited<T> {
        Box::pin(async move { self.fetch().await })
    }
}

impl<T: Data + Clone> IntoFuture for &TaskFuture<T> {
    type Output = Result<T>;
    type IntoFuture = Awaited<T>;

    fn into_future(self) -> Awaited<T> {
        self.clone().into_future()
    }
}

impl Shared {
    /// The value of a key, once it is there.
    pub(super) async fn value(self: &Arc<Self>, state: &Arc<KeyState>) -> Result<Value> {
        loop {
            state.done().await;
            match state.standing() {
                Standing::Pending => {}
                Standing::Memory { value: Some(value), .. } => return Ok(value),
                Standing::Memory { .. } => {
                    let (tell, told) = tokio::sync::oneshot::channel();
                    self.commands.put(Command::Fetch { state: state.clone(), tell });
                    match told.await {
                        Ok(Some(value)) => return Ok(value?),
                        // Whoever held it does not any more; the scheduler sees to it.
                        Ok(None) => {}
                        Err(_) => state.set(Standing::Closed(self.why_closed())),
                    }
                }
                Standing::Erred(error) => return Err(Error::Task(error)),
                Standing::Cancelled => return Err(Error::Cancelled { key: state.key }),
                Standing::Closed(reason) => return Err(Error::closed(&*reason)),
            }
        }
    }
}

macro_rules! future_arguments {
    ($($future:ty, $($kept:ident)?;)*) => {$(
        impl<T: Data + Clone> IntoArg<T> for $future {
            type Repr = ByFuture;

            fn write(self, encoder: &mut ArgEncoder) -> Result<(), TaskError> {
                encoder.dependency(self.state.key)?;
                $(encoder.$kept(self);)?
                Ok(())
            }
        }

        impl<T: Data> IntoArg<Arc<T>> for $future {
            type Repr = ByShared;

            fn write(self, encoder: &mut ArgEncoder) -> Result<(), TaskError> {
                encoder.dependency(self.state.key)?;
                $(encoder.$kept(self);)?
                Ok(())
            }
        }
    )*};
}

future_arguments!(TaskFuture<T>, keep; &TaskFuture<T>,;);

macro_rules! futures_arguments {
    ($($futures:ty, $($kept:ident)?;)*) => {$(
        impl<T: Data + Clone> IntoArg<Vec<T>> for $futures {
            type Repr = ByFutures;

            fn write(self, encoder: &mut ArgEncoder) -> Result<(), TaskError> {
                write_many(encoder, self.iter().map(|future| future.state.key))?;
                $(encoder.$kept(self);)?
                Ok(())
            }
        }

        impl<T: Data> IntoArg<Vec<Arc<T>>> for $futures {
            type Repr = ByShareds;

            fn write(self, encoder: &mut ArgEncoder) -> Result<(), TaskError> {
                write_many(encoder, self.iter().map(|future| future.state.key))?;
                $(encoder.$kept(self);)?
                Ok(())
            }
        }
    )*};
}

futures_arguments!(
    Vec<TaskFuture<T>>, keep;
    &Vec<TaskFuture<T>>,;
    &[TaskFuture<T>],;
    Vec<&TaskFuture<T>>,;
    &[&TaskFuture<T>],;
);
