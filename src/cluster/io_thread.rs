//! The I/O thread of a process: its servers, state machines and transports.

use std::{
    cell::RefCell,
    future::Future,
    sync::mpsc::{SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};

use futures::future::LocalBoxFuture;
use tokio::{
    runtime,
    sync::mpsc::{UnboundedSender, unbounded_channel},
    task::{self, JoinSet, LocalSet},
    time,
};

use crate::{Error, Result, link::spin, worker};

/// What is still being served when the thread is to end is given this long.
const LAST_WORDS: Duration = Duration::from_secs(3);

type Service = Box<dyn FnOnce() -> LocalBoxFuture<'static, ()> + Send>;

thread_local! {
    static LAST: RefCell<Vec<Box<dyn FnOnce()>>> = const { RefCell::new(Vec::new()) };
}

/// Has something done once all that this I/O thread serves has ended, while its runtime is still there.
#[cfg(feature = "mpi")]
pub(super) fn at_end(last: impl FnOnce() + 'static) {
    LAST.with_borrow_mut(|all| all.push(Box::new(last)));
}

/// A thread that serves. Dropping it lets what it serves come to its end, and waits for that.
pub(super) struct IoThread {
    services: Option<UnboundedSender<Service>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// Tells whoever started a service that it is ready, or why not.
pub(super) type Ready<T> = SyncSender<Result<T>>;

impl IoThread {
    pub(super) fn start() -> Result<Self> {
        Self::start_with(false)
    }

    /// A thread that spins a moment after each message before it sleeps, while a compute thread of this process is idle:
    /// for processes whose compute threads have the machine's cores to themselves.
    pub(super) fn start_spinning() -> Result<Self> {
        Self::start_with(true)
    }

    fn start_with(spinning: bool) -> Result<Self> {
        let failed = || Error::io("start the I/O thread");
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            // The runtime looks for events after each turn: turns are batches already.
            .event_interval(7)
            .build()
            .map_err(failed())?;
        let (services, mut started) = unbounded_channel::<Service>();
        let serve = async move {
            task::spawn_local(spin(spinning, worker::a_thread_is_idle));
            let mut running = JoinSet::new();
            while let Some(service) = started.recv().await {
                running.spawn_local(service());
            }
            let all = async { while running.join_next().await.is_some() {} };
            let _ = time::timeout(LAST_WORDS, all).await;
            drop(running);
            LAST.take().into_iter().for_each(|last| last());
        };
        let thread = thread::Builder::new()
            .name("rankine io".into())
            .spawn(move || LocalSet::new().block_on(&runtime, serve))
            .map_err(failed())?;
        Ok(Self { services: Some(services), thread: Some(thread) })
    }

    /// Starts a service and waits until it is ready.
    pub(super) fn serve<T, F, Served>(&self, service: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Ready<T>) -> Served + Send + 'static,
        Served: Future<Output = ()> + 'static,
    {
        let (ready, waiting) = sync_channel(1);
        let gone = || Error::closed("the I/O thread ended");
        let services = self.services.as_ref().ok_or_else(gone)?;
        services.send(Box::new(move || Box::pin(service(ready)))).map_err(|_| gone())?;
        waiting.recv().map_err(|_| gone())?
    }

    /// As dropping it, but waits no longer than this. Says whether it came to its end.
    pub(super) fn end(mut self, within: Duration) -> bool {
        drop(self.services.take());
        let start = Instant::now();
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            if start.elapsed() > within {
                // It goes when the process does.
                self.thread = None;
                return false;
            }
            thread::sleep(Duration::from_micros(200));
        }
        true
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        drop(self.services.take());
        if let Some(thread) = self.thread.take() {
            // It catches nothing that panics in a service; nobody is left to tell.
            let _ = thread.join();
        }
    }
}
