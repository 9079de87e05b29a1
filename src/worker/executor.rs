//! Compute threads: they run tasks and never touch a socket.

use std::{
    cell::RefCell,
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{Execution, Stimulus};
use crate::{
    protocol::TaskId,
    task::{self, Value},
};

/// How long an idle compute thread looks for work before it sleeps.
const SPIN: Duration = Duration::from_micros(20);

/// A pool of compute threads. Dropping it lets running tasks end and waits for none of them.
pub(crate) struct Executor {
    shared: Arc<Shared>,
}

struct Shared {
    worker: Arc<str>,
    queue: Mutex<VecDeque<Execution>>,
    waiting: AtomicUsize,
    sleeping: AtomicUsize,
    work: Condvar,
    ended: AtomicBool,
    /// What happened, for the I/O thread.
    done: Mutex<Vec<Stimulus>>,
    told: Notify,
}

/// Compute threads of this process, and those of them that run a task.
static THREADS: AtomicUsize = AtomicUsize::new(0);
static BUSY: AtomicUsize = AtomicUsize::new(0);

/// Whether a compute thread of this process has nothing to run, and so leaves a core free.
pub(crate) fn a_thread_is_idle() -> bool {
    BUSY.load(Ordering::Relaxed) < THREADS.load(Ordering::Relaxed)
}

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

/// The task that runs on this thread.
struct Current {
    id: TaskId,
    shared: Arc<Shared>,
    seceded: bool,
}

/// The name of the worker whose task runs on this thread; `None` outside of tasks.
pub fn worker_name() -> Option<Arc<str>> {
    CURRENT.with_borrow(|current| current.as_ref().map(|c| c.shared.worker.clone()))
}

/// Called within a task that will take its time without computing (it waits, or serves): the task
/// goes on, and its worker runs another one in its place. Without effect outside of tasks.
pub fn secede() {
    CURRENT.with_borrow_mut(|current| {
        let Some(current) = current.as_mut().filter(|c| !c.seceded) else { return };
        // Without a thread in its place the task rather keeps its own.
        if Shared::spawn(&current.shared).is_ok() {
            current.seceded = true;
            current.shared.tell(Stimulus::Seceded(current.id));
        }
    });
}

impl Executor {
    /// Starts `threads` compute threads of the worker called `worker`.
    ///
    /// # Errors
    /// If the system gives no more threads.
    pub(crate) fn start(worker: Arc<str>, threads: u32) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            worker,
            queue: Mutex::default(),
            waiting: AtomicUsize::new(0),
            sleeping: AtomicUsize::new(0),
            work: Condvar::new(),
            ended: AtomicBool::new(false),
            done: Mutex::default(),
            told: Notify::new(),
        });
        let executor = Self { shared };
        for _ in 0..threads {
            Shared::spawn(&executor.shared)?;
        }
        Ok(executor)
    }

    /// Queues tasks.
    pub(crate) fn execute(&self, tasks: Vec<Execution>) {
        let count = tasks.len();
        let mut queue = lock(&self.shared.queue);
        queue.extend(tasks);
        self.shared.waiting.store(queue.len(), Ordering::SeqCst);
        drop(queue);
        if self.shared.sleeping.load(Ordering::SeqCst) > 0 {
            if count == 1 { self.shared.work.notify_one() } else { self.shared.work.notify_all() }
        }
    }

    /// What happened since the last call; waits for something to happen. Cancel safe.
    pub(crate) async fn happened(&self) -> Vec<Stimulus> {
        loop {
            let done = std::mem::take(&mut *lock(&self.shared.done));
            if !done.is_empty() {
                return done;
            }
            self.shared.told.notified().await;
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        lock(&self.shared.queue).clear();
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn spawn(shared: &Arc<Self>) -> std::io::Result<()> {
        let (shared, worker) = (shared.clone(), shared.worker.clone());
        let work = move || {
            THREADS.fetch_add(1, Ordering::Relaxed);
            shared.work();
            THREADS.fetch_sub(1, Ordering::Relaxed);
        };
        thread::Builder::new().name(format!("compute {}", worker)).spawn(work)?;
        Ok(())
    }

    fn work(self: Arc<Self>) {
        while let Some(execution) = self.next() {
            let id = execution.id;
            CURRENT.set(Some(Current { id, shared: self.clone(), seceded: false }));
            BUSY.fetch_add(1, Ordering::Relaxed);
            let start = Instant::now();
            let result = task::run(execution.entry, &execution.arguments, execution.dependencies);
            let duration = start.elapsed().as_nanos() as u64;
            BUSY.fetch_sub(1, Ordering::Relaxed);
            let seceded = CURRENT.take().is_some_and(|c| c.seceded);
            let result = result.map_err(|error| {
                if error.worker.is_empty() {
                    error.with(|report| {
                        report.key = execution.key.to_string();
                        report.worker = self.worker.to_string();
                    })
                } else {
                    error
                }
            });
            let nbytes = result.as_ref().map_or(0, Value::nbytes);
            self.tell(Stimulus::Executed { id, result, nbytes, duration });
            if seceded {
                // Another thread took this one's place.
                return;
            }
        }
    }

    fn next(&self) -> Option<Execution> {
        let mut spinning = None::<Instant>;
        loop {
            if self.ended.load(Ordering::SeqCst) {
                return None;
            }
            if self.waiting.load(Ordering::SeqCst) > 0 {
                let mut queue = lock(&self.queue);
                let next = queue.pop_front();
                self.waiting.store(queue.len(), Ordering::SeqCst);
                if next.is_some() {
                    return next;
                }
            }
            if spinning.get_or_insert_with(Instant::now).elapsed() < SPIN {
                thread::yield_now();
                continue;
            }
            spinning = None;
            let queue = lock(&self.queue);
            self.sleeping.fetch_add(1, Ordering::SeqCst);
            if queue.is_empty() && !self.ended.load(Ordering::SeqCst) {
                drop(self.work.wait(queue).unwrap_or_else(PoisonError::into_inner));
            } else {
                drop(queue);
            }
            self.sleeping.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn tell(&self, stimulus: Stimulus) {
        let mut done = lock(&self.done);
        done.push(stimulus);
        let first = done.len() == 1;
        drop(done);
        if first {
            self.told.notify_one();
        }
    }
}

/// A panic in a task is caught before it could poison anything of ours.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
