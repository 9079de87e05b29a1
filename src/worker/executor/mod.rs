//! Compute threads: they run tasks and never touch a socket.
//!
//! A task may be given to them before others are done that make what it needs, if they were given these too: a
//! thread that is done with a task hands its result to those that wait for it, and goes on with one of them. So a
//! chain of short tasks runs without the I/O thread. That one is not woken for each of them: it hears of several at
//! once, as soon as no other is under way, or the first of them has waited for a moment.

mod tasks;

use std::{
    cell::{Cell, OnceCell},
    hint,
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
/// How long it looks without giving its core away: to do so takes as long as some looks, and where threads exchange results the
/// next one is due any moment.
const AT_HAND: Duration = Duration::from_micros(2);
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
    /// The pool that this thread is of.
    static POOL: OnceCell<Arc<Shared>> = const { OnceCell::new() };
    /// The task that runs on it.
    static RUNNING: Cell<Option<Running>> = const { Cell::new(None) };
}

/// A task that runs.
#[derive(Clone, Copy)]
struct Running {
    id: TaskId,
    brief: bool,
    seceded: bool,
}

/// The name of the worker whose task runs on this thread; `None` outside of tasks.
pub fn worker_name() -> Option<Arc<str>> {
    RUNNING.get()?;
    POOL.with(|pool| pool.get().map(|shared| shared.worker.clone()))
}

/// Called within a task that will take its time without computing (it waits, or serves): the task
/// goes on, and its worker runs another one in its place. Without effect outside of tasks.
pub fn secede() {
    let Some(running) = RUNNING.get().filter(|running| !running.seceded) else { return };
    POOL.with(|pool| {
        // Without a thread in its place the task rather keeps its own.
        if let Some(shared) = pool.get().filter(|shared| Shared::spawn(shared).is_ok()) {
            RUNNING.set(Some(Running { brief: false, seceded: true, ..running }));
            shared.secede(running.id, running.brief);
        }
    });
}

/// Whether this thread counts among those that run a task.
struct Busy(bool);

impl Busy {
    fn set(&mut self, busy: bool) {
        if busy && !self.0 {
            BUSY.fetch_add(1, Ordering::Relaxed);
        } else if self.0 && !busy {
            BUSY.fetch_sub(1, Ordering::Relaxed);
        }
        self.0 = busy;
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// A task that was run.
struct Done {
    id: TaskId,
    result: Result<Value, TaskError>,
    start: Instant,
    end: Instant,
    brief: bool,
    seceded: bool,
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
        self.shared.waiting.store(tasks.ready.len(), Ordering::Relaxed);
        self.shared.tell(tasks, true, Instant::now());
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
        if tasks.is_unfinished(id) {
            tasks.hastened.insert(id);
        } else {
            // It may be done, and wait for others to be told with.
            self.shared.tell(tasks, false, Instant::now());
        }
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        // Who looked before this goes to sleep before it is woken.
        lock(&self.shared.tasks).clear();
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
        POOL.with(|pool| pool.set(self.clone()).ok());
        let (mut busy, mut next) = (Busy(false), None);
        while let Some(execution) = next.take().or_else(|| self.next(&mut busy)) {
            busy.set(true);
            let Execution { task, inputs, brief } = execution;
            RUNNING.set(Some(Running { id: task.id, brief, seceded: false }));
            let start = Instant::now();
            let inputs = inputs.into_iter().filter_map(Input::value).collect();
            let result = task::run(task.entry, &task.arguments, inputs);
            let end = Instant::now();
            let seceded = RUNNING.take().is_some_and(|running| running.seceded);
            let result = result.map_err(|error| {
                if error.worker.is_empty() {
                    error.with(|report| {
                        report.key = task.key.to_string();
                        report.worker = self.worker.to_string();
                    })
                } else {
                    error
                }
            });
            let brief = brief && !seceded;
            next = self.report(Done { id: task.id, result, start, end, brief, seceded }, &mut busy);
            if seceded {
                // Another thread took this one's place.
                return;
            }
        }
    }

    /// Waits for a task that can start; `None` where there will be no more.
    fn next(&self, busy: &mut Busy) -> Option<Execution> {
        // Who has just told the I/O thread of something leaves it the core.
        let mut spun = if busy.0 { Duration::ZERO } else { AT_HAND };
        let (mut looked, mut since) = (None::<Instant>, None::<Instant>);
        loop {
            if self.ended.load(Ordering::Relaxed) {
                return None;
            }
            if self.waiting.load(Ordering::Relaxed) > 0
                && let Some(next) = self.start(&mut lock(&self.tasks))
            {
                return Some(next);
            }
            busy.set(false);
            let now = Instant::now();
            spun += looked.replace(now).map_or(Duration::ZERO, |before| (now - before).min(A_LOOK));
            if spun < SPIN && now - *since.get_or_insert(now) < DISPLACED {
                if spun < AT_HAND {
                    hint::spin_loop();
                } else {
                    thread::yield_now();
                }
                continue;
            }
            (looked, since, spun) = (None, None, Duration::ZERO);
            // What changes under the lock is seen under it: who puts a task there sees who sleeps, or is seen by it.
            let tasks = lock(&self.tasks);
            self.sleeping.fetch_add(1, Ordering::Relaxed);
            if tasks.ready.is_empty() && !self.ended.load(Ordering::Relaxed) {
                drop(self.work.wait(tasks).unwrap_or_else(PoisonError::into_inner));
            } else {
                drop(tasks);
            }
            self.sleeping.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn start(&self, tasks: &mut Tasks) -> Option<Execution> {
        let next = tasks.start();
        self.waiting.store(tasks.ready.len(), Ordering::Relaxed);
        next
    }

    /// A task is done: its result goes to the tasks here that wait for it, and to the I/O thread. Gives what this
    /// thread goes on with, unless it is to look for that itself.
    fn report(&self, done: Done, busy: &mut Busy) -> Option<Execution> {
        let Done { id, result, start, end, brief, seceded } = done;
        let mut tasks = lock(&self.tasks);
        let before = tasks.ready.len();
        tasks.finish(id, result, (end - start).as_nanos() as u64, brief);
        self.waiting.store(tasks.ready.len(), Ordering::Relaxed);
        let hastened = !tasks.hastened.is_empty() && tasks.hastened.remove(&id);
        // This thread takes one of them itself, unless another has taken its place.
        let others = (tasks.ready.len() - before).saturating_sub(usize::from(!seceded));
        let mut next = None;
        if self.is_to_tell(&mut tasks, brief && !hastened, end) {
            drop(tasks);
            // The I/O thread may displace this one at once, which holds no task then and leaves it a core.
            busy.set(false);
            self.told.notify_one();
        } else {
            next = if seceded { None } else { self.start(&mut tasks) };
            drop(tasks);
        }
        self.wake(others);
        next
    }

    /// There are so many more tasks that can start.
    fn wake(&self, tasks: usize) {
        if tasks > 0 && self.sleeping.load(Ordering::Relaxed) > 0 {
            if tasks == 1 { self.work.notify_one() } else { self.work.notify_all() }
        }
    }

    fn secede(&self, id: TaskId, brief: bool) {
        let mut tasks = lock(&self.tasks);
        tasks.secede(id, brief);
        self.tell(tasks, false, Instant::now());
    }

    /// Wakes the I/O thread, if what happened is not to be told with more of it.
    fn tell(&self, mut tasks: MutexGuard<'_, Tasks>, brief: bool, now: Instant) {
        let tell = self.is_to_tell(&mut tasks, brief, now);
        drop(tasks);
        if tell {
            self.told.notify_one();
        }
    }

    fn is_to_tell(&self, tasks: &mut Tasks, brief: bool, now: Instant) -> bool {
        let alone = || THREADS.load(Ordering::Relaxed) < *CORES;
        tasks.is_to_be_told(brief, now, || alone() || sched_getcpu() == self.core.load(Ordering::Relaxed))
    }
}

/// A panic in a task is caught before it could poison anything of ours.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{tasks::tests::execution_of, *};
    use crate::task::{EntryRef, Plain, TaskEntry, entry_of};

    static STAGE: AtomicUsize = AtomicUsize::new(0);

    fn reach(stage: usize) {
        let since = Instant::now();
        while STAGE.load(Ordering::SeqCst) < stage {
            assert!(since.elapsed() < Duration::from_secs(10), "stage {stage} is not reached");
            thread::yield_now();
        }
    }

    fn takes_its_time() -> u64 {
        secede();
        STAGE.store(1, Ordering::SeqCst);
        reach(2);
        0
    }

    fn follows() -> u64 {
        STAGE.store(3, Ordering::SeqCst);
        0
    }

    fn execution(n: u32, entry: &'static TaskEntry, needs: &[u32]) -> Execution {
        Execution { brief: false, ..execution_of(n, EntryRef::of(entry), needs) }
    }

    #[test]
    fn who_was_given_after_what_it_waits_for_seceded_runs_when_that_is_done() {
        let executor = Executor::start("w".into(), 1).expect("there are threads");
        executor.execute(vec![execution(1, entry_of::<_, (), (), Plain>(takes_its_time), &[])]);
        reach(1);
        // The I/O thread was told of that, and has not looked yet.
        executor.execute(vec![execution(2, entry_of::<_, (), (), Plain>(follows), &[1])]);
        STAGE.store(2, Ordering::SeqCst);
        reach(3);
    }
}
