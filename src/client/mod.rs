//! The client: submits functions, holds futures, fetches results.
//!
//! [`Client`] and [`TaskFuture`] are handles that any thread may use; they put commands into a
//! queue that the I/O thread's side (`core`) empties, a whole batch at a time. Start with
//! [`Client::submit`]; `future` says how results come back.

mod as_completed;
pub mod blocking;
mod commands;
pub(crate) mod core;
mod future;
mod managing;
mod submit;

use std::{
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_timer::Delay;
use tokio::sync::oneshot;

pub use as_completed::AsCompleted;
pub(crate) use commands::{Command, Commands, Submission};
pub use future::{Awaited, Status, TaskFuture};
pub(crate) use future::{KeyState, Standing};
pub use submit::Options;

use crate::{
    Error, Result,
    graph::{Key, KeyMap},
    protocol::{Answer, Query},
    task::{ArgEncoder, Data, Entry, EntryRef, HasEntry, IntoArg, IntoArgs, TaskFn, Value, entry_of},
};

/// A connection to a cluster. Cheap to clone; usable from any thread.
///
/// Everything that waits is `async`, from any executor; [`blocking::Client`] is its twin for
/// programs without async.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    /// Ends the cluster or connection behind this client with the last clone.
    _guard: Option<Arc<dyn Send + Sync>>,
}

/// What all handles of one client share.
pub(crate) struct Shared {
    seed: u128,
    counter: AtomicU64,
    table: Mutex<KeyMap<Key, Arc<KeyState>>>,
    commands: Commands,
}

impl Shared {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            seed: rand::random(),
            counter: AtomicU64::new(0),
            table: Mutex::default(),
            commands: Commands::default(),
        })
    }

    fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        // Nothing of ours panics while it holds one; if it did, the data would still be whole.
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unique_key(&self) -> Key {
        Key::unique(self.seed, self.counter.fetch_add(1, Ordering::Relaxed))
    }

    fn submit(&self, submissions: Vec<Submission>) {
        if !submissions.is_empty() {
            self.commands.put(Command::submit(submissions));
        }
    }

    /// A future of `key`, and whether the key is new to this client.
    fn future<T>(self: &Arc<Self>, key: Key) -> (bool, TaskFuture<T>) {
        let mut table = Self::lock(&self.table);
        let mut new = false;
        let state = table.entry(key).or_insert_with(|| {
            new = true;
            Arc::new(KeyState::new(key))
        });
        if matches!(state.standing(), Standing::Cancelled) {
            // Asked for again after it was cancelled: a new life under the same name.
            new = true;
            *state = Arc::new(KeyState::new(key));
        }
        let future = TaskFuture::new(state.clone(), self.clone());
        drop(table);
        if new && let Some(reason) = self.closed() {
            future.state.set(Standing::Closed(reason));
        }
        (new, future)
    }

    /// The last handle is gone: unless another came meanwhile, the cluster need not keep the result.
    fn release(&self, state: &Arc<KeyState>) {
        let mut table = Self::lock(&self.table);
        if state.handles.load(Ordering::Acquire) > 0 {
            return;
        }
        if table.get(&state.key).is_some_and(|current| Arc::ptr_eq(current, state)) {
            table.remove(&state.key);
            // Under the lock, so that a new submission of the key comes after.
            self.commands.put(Command::Release { key: state.key, small: state.is_small() });
        }
    }

    fn closed(&self) -> Option<Arc<str>> {
        self.commands.closed()
    }

    fn why_closed(&self) -> Arc<str> {
        self.closed().unwrap_or_else(|| "the client was closed".into())
    }

    /// Asks for the connection to be closed, without waiting.
    pub(crate) fn begin_close(&self) {
        self.commands.put(Command::Close { tell: oneshot::channel().0 });
    }

    async fn ask(&self, query: Query) -> Result<Answer> {
        let (tell, told) = oneshot::channel();
        self.commands.put(Command::Ask { query, tell });
        told.await.unwrap_or_else(|_| Err(Error::closed(&*self.why_closed())))
    }
}

/// What [`Client::wait`] waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReturnWhen {
    /// All are done.
    #[default]
    AllCompleted,
    /// One is done.
    FirstCompleted,
    /// All are done, or one erred.
    FirstException,
}

impl Client {
    pub(crate) fn new(shared: Arc<Shared>, guard: Option<Arc<dyn Send + Sync>>) -> Self {
        Self { shared, _guard: guard }
    }

    /// Runs `function(arguments...)` on the cluster. Returns at once; the future stands for the result.
    ///
    /// Each argument is a value, a [`TaskFuture`] (or a reference to one), or, for a `Vec`
    /// parameter, a vector of futures. A function that returns a `Result` errs its future on `Err`.
    /// Equal calls of one function share one result, unless [`Options::pure`] says otherwise.
    ///
    /// Where the error type itself could travel as a result (`String`, say), say which you mean
    /// with [`Client::try_submit`].
    ///
    /// ```no_run
    /// # fn add(x: i64, y: i64) -> i64 { x + y }
    /// # async fn example(client: rankine::Client) -> rankine::Result<()> {
    /// let a = client.submit(|x: i64| x * x, (3,));
    /// let b = client.submit(add, (&a, 1));
    /// assert_eq!(b.await?, 10);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A closure that captures is refused when it is compiled:
    ///
    /// ```compile_fail
    /// # fn example(client: &rankine::Client) {
    /// let step = 2;
    /// client.submit(|x: i64| x + step, (1,));
    /// # }
    /// ```
    pub fn submit<F, P, A, M>(&self, function: F, arguments: A) -> TaskFuture<F::Output>
    where
        F: TaskFn<P, M>,
        A: IntoArgs<P>,
        Entry<F, P, A::Repr, M>: HasEntry,
    {
        self.options().submit(function, arguments)
    }

    /// [`Client::submit`] for a function that returns a `Result` whose error type could itself
    /// travel as a value: says that an `Err` errs the future.
    pub fn try_submit<F, P, A>(&self, function: F, arguments: A) -> TaskFuture<F::Output>
    where
        F: TaskFn<P, crate::task::Fallible>,
        A: IntoArgs<P>,
        Entry<F, P, A::Repr, crate::task::Fallible>: HasEntry,
    {
        self.options().submit(function, arguments)
    }

    /// Runs a function of one parameter on each of many arguments, submitted in one message.
    pub fn map<F, P, A, M, I>(&self, function: F, arguments: I) -> Vec<TaskFuture<F::Output>>
    where
        F: TaskFn<(P,), M>,
        A: IntoArg<P>,
        I: IntoIterator<Item = A>,
        Entry<F, (P,), (A::Repr,), M>: HasEntry,
    {
        self.options().map(function, arguments)
    }

    /// Runs a function of several parameters on each of many tuples of arguments.
    pub fn starmap<F, P, A, M, I>(&self, function: F, arguments: I) -> Vec<TaskFuture<F::Output>>
    where
        F: TaskFn<P, M>,
        A: IntoArgs<P>,
        I: IntoIterator<Item = A>,
        Entry<F, P, A::Repr, M>: HasEntry,
    {
        self.options().starmap(function, arguments)
    }

    /// Says how the tasks submitted through it are to be run.
    pub fn options(&self) -> Options<'_> {
        Options::new(self)
    }

    /// The results of all futures, in their order. Fetches come from the workers directly, many at once.
    ///
    /// # Errors
    /// The first future's that has no result.
    pub async fn gather<T: Data + Clone>(
        &self,
        futures: impl IntoIterator<Item = impl std::borrow::Borrow<TaskFuture<T>>>,
    ) -> Result<Vec<T>> {
        // First all that is small and here already; the rest is asked for at once.
        let mut values = Vec::new();
        for future in futures {
            let state = future.borrow().state.clone();
            state.done().await;
            let coming = match state.standing() {
                Standing::Memory { value: None, .. } => {
                    let (tell, told) = oneshot::channel();
                    self.shared.commands.put(Command::Fetch { state: state.clone(), tell });
                    Some(told)
                }
                _ => None,
            };
            // The handle keeps the result on the cluster until it is here.
            values.push((future, state, coming));
        }
        let mut results = Vec::with_capacity(values.len());
        for (_future, state, coming) in values {
            let value = match coming {
                Some(told) => told.await.ok().flatten(),
                None => None,
            };
            let value = match value {
                Some(value) => value?,
                None => self.shared.value(&state).await?,
            };
            results.push(value.into_inner()?);
        }
        Ok(results)
    }

    /// Puts values on the workers, spread over them; gives a future of each.
    ///
    /// # Errors
    /// If there is no worker, or a value cannot be sent.
    pub async fn scatter<T: Data>(&self, values: impl IntoIterator<Item = T>) -> Result<Vec<TaskFuture<T>>> {
        self.put_data(values.into_iter().map(Value::new).collect(), false).await
    }

    /// Puts a value on every worker.
    ///
    /// # Errors
    /// As [`Client::scatter`].
    pub async fn broadcast<T: Data>(&self, value: T) -> Result<TaskFuture<T>> {
        let mut futures = self.put_data(vec![Value::new(value)], true).await?;
        futures.pop().ok_or_else(|| Error::closed("nothing was scattered"))
    }

    async fn put_data<T>(&self, values: Vec<Value>, everywhere: bool) -> Result<Vec<TaskFuture<T>>> {
        let mut futures = Vec::with_capacity(values.len());
        let mut data = Vec::with_capacity(values.len());
        for value in values {
            let key = self.shared.unique_key();
            futures.push(self.shared.future(key).1);
            data.push((key, value));
        }
        if !data.is_empty() {
            let (tell, told) = oneshot::channel();
            self.shared.commands.put(Command::Scatter { data, everywhere, tell });
            told.await.unwrap_or_else(|_| Err(Error::closed(&*self.shared.why_closed())))?;
        }
        Ok(futures)
    }

    /// Waits until the futures are done, without fetching results.
    ///
    /// # Errors
    /// If they were not within `timeout`.
    pub async fn wait<T: 'static>(
        &self,
        futures: &[TaskFuture<T>],
        until: ReturnWhen,
        timeout: Option<Duration>,
    ) -> Result<()> {
        let all = async {
            match until {
                ReturnWhen::AllCompleted => {
                    for future in futures {
                        future.done().await;
                    }
                }
                ReturnWhen::FirstCompleted | ReturnWhen::FirstException => {
                    let mut completed = self.as_completed(futures.iter().cloned());
                    while let Some(future) = completed.next().await {
                        if until == ReturnWhen::FirstCompleted || future.error().is_some() {
                            break;
                        }
                    }
                }
            }
        };
        match timeout {
            None => all.await,
            Some(timeout) => {
                let late = Delay::new(timeout);
                futures::pin_mut!(all);
                if let futures::future::Either::Right(_) = futures::future::select(all, late).await {
                    let pending = futures.iter().filter(|f| !f.is_done()).count();
                    return Err(Error::Usage(format!(
                        "{pending} of {} futures were not done within {timeout:?}",
                        futures.len()
                    )));
                }
            }
        }
        Ok(())
    }

    /// The futures in the order in which they are done; takes new ones while it runs.
    pub fn as_completed<T: 'static>(
        &self,
        futures: impl IntoIterator<Item = TaskFuture<T>>,
    ) -> AsCompleted<T> {
        AsCompleted::new(futures)
    }

    /// Gives the futures up: tasks that did not run will not, results go.
    /// Awaiting one of them (or one that depends on them) errs with [`Error::Cancelled`].
    pub fn cancel<T>(&self, futures: &[TaskFuture<T>]) {
        self.cancel_keys(futures.iter().map(TaskFuture::key).collect(), false);
    }

    /// [`Client::cancel`], even where other clients want the results.
    pub fn cancel_for_all<T>(&self, futures: &[TaskFuture<T>]) {
        self.cancel_keys(futures.iter().map(TaskFuture::key).collect(), true);
    }

    fn cancel_keys(&self, keys: Vec<Key>, force: bool) {
        self.shared.commands.put(Command::Cancel { keys, force });
    }

    /// Leaves the cluster: what only this client wanted is released, its futures are lost.
    pub async fn close(&self) {
        let (tell, told) = oneshot::channel();
        self.shared.commands.put(Command::Close { tell });
        let _ = told.await;
    }

    /// Ends the whole cluster: workers, scheduler and all clients.
    ///
    /// # Errors
    /// If the cluster was gone already.
    pub async fn shutdown(&self) -> Result<()> {
        self.shutdown_because(None).await
    }

    /// [`Client::shutdown`], for a reason that all are told.
    pub(crate) async fn shutdown_because(&self, reason: Option<String>) -> Result<()> {
        self.shared.ask(Query::Shutdown { reason }).await?;
        self.close().await;
        Ok(())
    }
}

/// Entry and arguments of a call outside of the task graph.
fn immediate<F, P, A, M>(function: F, arguments: A) -> Result<(EntryRef, crate::graph::Arguments)>
where
    F: TaskFn<P, M>,
    A: IntoArgs<P>,
    Entry<F, P, A::Repr, M>: HasEntry,
{
    let entry = EntryRef::of(entry_of::<F, P, A::Repr, M>(function));
    let mut encoder = ArgEncoder::default();
    arguments.write(&mut encoder)?;
    let (arguments, dependencies, _) = encoder.finish();
    if !dependencies.is_empty() {
        return Err(Error::Usage(
            "a function run outside of the task graph takes values, not futures: await them first".into(),
        ));
    }
    Ok((entry, arguments))
}

fn strange_answer() -> Error {
    Error::Refused { peer: "the scheduler".into(), reason: "its answer does not fit the question".into() }
}

/// Runs a future to its end on this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    futures::executor::block_on(future)
}
