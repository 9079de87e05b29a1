//! Compute threads: they run tasks and never touch a socket.
//!
//! A task may be given to them before others are done that make what it needs, if they were given these too: a
//! thread that is done with a task hands its result to those that wait for it, and goes on with one of them. So a
//! chain of short tasks runs without the I/O thread. That one is not woken for each of them: it hears of several at
//! once, as soon as no other is under way, or the first of them has waited for a moment.

mod tasks;

use std::{
    cell::RefCell,
    mem,
    sync::{
        Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::thread::sched_getcpu;
use tokio::{sync::Notify, time};

use super::{Execution, Input, Stimulus};
use crate::{
    protocol::TaskId,
    task::{self, TaskError, Value},
};
use tasks::Tasks;

/// How long an idle compute thread looks for work before it sleeps, giving its core to whoever else is ready. Where the core
/// sleeps too, as on a virtual machine, waking both takes nearly as long.
const SPIN: Duration = Duration::from_micros(100);
/// What a look counts for at most: a thread that was displaced meanwhile did not look for longer. But where it is displaced for so long
/// in all, others need the core.
const A_LOOK: Duration = Duration::from_micros(5);
const DISPLACED: Duration = Duration::from_millis(1);
/// After how long the I/O thread looks by itself, in case a brief task was none; and after how long at most, the more
/// often it looked in vain.
const LOOK: Duration = Duration::from_millis(1);
const LOOK_AT_MOST: Duration = Duration::from_millis(16);

/// A pool of compute threads. Dropping it lets running tasks end and waits for none of them.
pub(crate) struct Executor {
    shared: Arc<Shared>,
}

struct Shared {
    worker: Arc<str>,
    tasks: Mutex<Tasks>,
    /// Tasks that can start.
    waiting: AtomicUsize,
    sleeping: AtomicUsize,
    work: Condvar,
    ended: AtomicBool,
    told: Notify,
    /// The core on which the I/O thread looked last: it will most likely be woken there.
    core: AtomicUsize,
}

/// Compute threads of this process, and those of them that run a task.
static THREADS: AtomicUsize = AtomicUsize::new(0);
static BUSY: AtomicUsize = AtomicUsize::new(0);

/// The cores that this process may use.
static CORES: LazyLock<usize> = LazyLock::new(|| thread::available_parallelism().map_or(1, usize::from));

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
    brief: bool,
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
            current.shared.secede(current.id, mem::take(&mut current.brief));
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
            tasks: Mutex::default(),
            waiting: AtomicUsize::new(0),
            sleeping: AtomicUsize::new(0),
            work: Condvar::new(),
            ended: AtomicBool::new(false),
            told: Notify::new(),
            core: AtomicUsize::new(0),
        });
        let executor = Self { shared };
        for _ in 0..threads {
            Shared::spawn(&executor.shared)?;
        }
        Ok(executor)
    }

    /// Takes tasks in, those first that others of them need.
    pub(crate) fn execute(&self, executions: Vec<Execution>) {
        let mut tasks = lock(&self.shared.tasks);
        let ready = tasks.ready.len();
        executions.into_iter().for_each(|execution| tasks.add(execution));
        let more = tasks.ready.len() - ready;
        self.shared.waiting.store(tasks.ready.len(), Ordering::SeqCst);
        self.shared.tell(tasks, true);
        self.shared.wake(more);
    }

    /// What happened since the last call; waits for something to happen. Cancel safe.
    pub(crate) async fn happened(&self) -> Vec<Stimulus> {
        let mut patience = LOOK;
        loop {
            self.shared.core.store(sched_getcpu(), Ordering::Relaxed);
            let (done, watch) = lock(&self.shared.tasks).take();
            if !done.is_empty() {
                return done;
            }
            let told = self.shared.told.notified();
            if !watch {
                told.await;
            } else if time::timeout(patience, told).await.is_err() {
                patience = (2 * patience).min(LOOK_AT_MOST);
            }
        }
    }

    /// A task's end is to be told at once.
    pub(crate) fn hasten(&self, id: TaskId) {
        let mut tasks = lock(&self.shared.tasks);
        if tasks.unfinished.contains(&id) {
            tasks.hastened.insert(id);
        } else {
            // It may be done, and wait for others to be told with.
            self.shared.tell(tasks, false);
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        let mut tasks = lock(&self.shared.tasks);
        tasks.ready.clear();
        tasks.blocked.clear();
        drop(tasks);
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
            let (id, brief) = (execution.id, execution.brief);
            CURRENT.set(Some(Current { id, shared: self.clone(), brief, seceded: false }));
            BUSY.fetch_add(1, Ordering::Relaxed);
            let start = Instant::now();
            let inputs = execution.dependencies.into_iter().filter_map(Input::value).collect();
            let result = task::run(execution.entry, &execution.arguments, inputs);
            let duration = start.elapsed().as_nanos() as u64;
            BUSY.fetch_sub(1, Ordering::Relaxed);
            let (brief, seceded) = CURRENT.take().map_or((brief, false), |c| (c.brief, c.seceded));
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
            self.report(id, result, duration, brief, seceded);
            if seceded {
                // Another thread took this one's place.
                return;
            }
        }
    }

    fn next(&self) -> Option<Execution> {
        let (mut looked, mut since, mut spun) = (None::<Instant>, None::<Instant>, Duration::ZERO);
        loop {
            if self.ended.load(Ordering::SeqCst) {
                return None;
            }
            if self.waiting.load(Ordering::SeqCst) > 0 {
                let mut tasks = lock(&self.tasks);
                let next = tasks.start();
                self.waiting.store(tasks.ready.len(), Ordering::SeqCst);
                drop(tasks);
                if next.is_some() {
                    return next;
                }
            }
            let now = Instant::now();
            spun += looked.replace(now).map_or(Duration::ZERO, |before| (now - before).min(A_LOOK));
            if spun < SPIN && now - *since.get_or_insert(now) < DISPLACED {
                thread::yield_now();
                continue;
            }
            (looked, since, spun) = (None, None, Duration::ZERO);
            let tasks = lock(&self.tasks);
            self.sleeping.fetch_add(1, Ordering::SeqCst);
            if tasks.ready.is_empty() && !self.ended.load(Ordering::SeqCst) {
                drop(self.work.wait(tasks).unwrap_or_else(PoisonError::into_inner));
            } else {
                drop(tasks);
            }
            self.sleeping.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// A task is done: its result goes to the tasks here that wait for it, and to the I/O thread.
    fn report(
        &self,
        id: TaskId,
        result: Result<Value, TaskError>,
        duration: u64,
        brief: bool,
        seceded: bool,
    ) {
        let mut tasks = lock(&self.tasks);
        let before = tasks.ready.len();
        tasks.finish(id, result, duration, brief);
        let hastened = !tasks.hastened.is_empty() && tasks.hastened.remove(&id);
        let more = tasks.ready.len() - before;
        self.waiting.store(tasks.ready.len(), Ordering::SeqCst);
        self.tell(tasks, brief && !hastened);
        // This thread takes one of them itself, unless another has taken its place.
        self.wake(if seceded { more } else { more.saturating_sub(1) });
    }

    /// There are so many more tasks that can start.
    fn wake(&self, tasks: usize) {
        if tasks > 0 && self.sleeping.load(Ordering::SeqCst) > 0 {
            if tasks == 1 { self.work.notify_one() } else { self.work.notify_all() }
        }
    }

    fn secede(&self, id: TaskId, brief: bool) {
        let mut tasks = lock(&self.tasks);
        tasks.secede(id, brief);
        self.tell(tasks, false);
    }

    /// Wakes the I/O thread, if what happened is not to be told with more of it.
    fn tell(&self, mut tasks: MutexGuard<'_, Tasks>, brief: bool) {
        let alone = || THREADS.load(Ordering::Relaxed) < *CORES;
        let tell =
            tasks.is_to_be_told(brief, || alone() || sched_getcpu() == self.core.load(Ordering::Relaxed));
        drop(tasks);
        if tell {
            self.told.notify_one();
        }
    }
}

/// A panic in a task is caught before it could poison anything of ours.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
