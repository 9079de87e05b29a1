//! What handles of a client want of its I/O thread, and how that takes it.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, oneshot};

use super::{KeyState, Shared};
use crate::{
    Result,
    graph::{GraphTask, Key, TaskOptions},
    protocol::{Answer, Query},
    task::{Kept, TaskEntry, TaskError, Value},
};

/// Tasks, and bytes of their arguments, that wait for the I/O thread before handles wait too.
const TASKS_WAITING: usize = 1 << 16;
const BYTES_WAITING: u64 = 64 << 20;
/// Tasks of several submissions that the I/O thread takes at once; more where one submission has more, and up to twice as many as
/// the last time: those run meanwhile, and of very many most are taken together.
const TAKEN_TOGETHER: usize = 256;

/// What the handles want of the I/O thread.
pub(crate) enum Command {
    Submit {
        tasks: Vec<Submission>,
        /// Bytes of their arguments.
        nbytes: u64,
    },
    /// Of a small result this travels with the command that follows, or soon after a result came, or with the next
    /// heartbeat: it is not worth waking the I/O thread, and who submits one task after the other would wake it twice
    /// for each.
    Release {
        key: Key,
        small: bool,
    },
    FireAndForget(Vec<Key>),
    Cancel {
        keys: Vec<Key>,
        force: bool,
    },
    /// `None`: it was lost meanwhile.
    Fetch {
        state: Arc<KeyState>,
        tell: oneshot::Sender<Option<Result<Value, TaskError>>>,
    },
    Scatter {
        data: Vec<(Key, Value)>,
        everywhere: bool,
        tell: oneshot::Sender<Result<()>>,
    },
    Ask {
        query: Query,
        tell: oneshot::Sender<Result<Answer>>,
    },
    Close {
        tell: oneshot::Sender<()>,
    },
}

/// A task on its way to the scheduler.
pub(crate) struct Submission {
    pub(crate) entry: &'static TaskEntry,
    pub(crate) options: Option<Arc<TaskOptions>>,
    pub(crate) task: GraphTask,
    /// Dropped once the task is on its way.
    pub(crate) kept: Kept,
}

impl Command {
    pub(super) fn submit(tasks: Vec<Submission>) -> Self {
        let nbytes = tasks.iter().map(|submission| submission.task.arguments.nbytes()).sum();
        Self::Submit { tasks, nbytes }
    }

    /// Tasks that it submits, and bytes of their arguments.
    fn weight(&self) -> (usize, u64) {
        if let Self::Submit { tasks, nbytes } = self { (tasks.len(), *nbytes) } else { (0, 0) }
    }
}

/// The queue of commands.
#[derive(Default)]
pub(crate) struct Commands {
    queue: Mutex<Queue>,
    changed: Notify,
    /// Told whenever some were taken.
    taken: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Command>,
    /// Tasks among them, and bytes of their arguments.
    tasks: usize,
    nbytes: u64,
    /// Tasks that were taken last.
    taken: usize,
    /// The I/O thread was told that something waits.
    told: bool,
    /// Why nothing is taken any more.
    closed: Option<Arc<str>>,
}

impl Commands {
    /// Puts a command for the I/O thread, which is woken unless the command can wait for another. Waits while tasks are
    /// submitted and that has not taken many earlier ones, so that who submits faster than the scheduler takes in does
    /// not fill the memory.
    pub(super) fn put(&self, command: Command) {
        let (tasks, nbytes) = command.weight();
        let too_many = |queue: &mut Queue| {
            queue.closed.is_none()
                && queue.tasks.min(tasks) > 0
                && (queue.tasks + tasks > TASKS_WAITING
                    || queue.nbytes.saturating_add(nbytes) > BYTES_WAITING)
        };
        let queue = self.taken.wait_while(self.lock(), too_many);
        let mut queue = queue.unwrap_or_else(PoisonError::into_inner);
        if queue.closed.is_some() {
            // Dropping the command tells whoever waits for its answer.
            return;
        }
        queue.tasks += tasks;
        queue.nbytes = queue.nbytes.saturating_add(nbytes);
        let waits = matches!(command, Command::Release { small: true, .. });
        queue.waiting.push_back(command);
        let tell = !waits && !mem::replace(&mut queue.told, true);
        drop(queue);
        if tell {
            self.changed.notify_one();
        }
    }

    /// Waits until there is something to take, or [`Commands::look`] is called. Cancel safe.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Has what waits without having woken anybody looked at.
    pub(super) fn look(&self) {
        self.changed.notify_one();
    }

    /// Takes what the I/O thread is to do next: all, unless these are many tasks.
    pub(super) fn take(&self) -> VecDeque<Command> {
        let mut queue = self.lock();
        let (mut tasks, mut nbytes) = (0, 0u64);
        let enough = TAKEN_TOGETHER.max(2 * queue.taken);
        let last = queue.waiting.iter().position(|command| {
            let (more, more_bytes) = command.weight();
            (tasks, nbytes) = (tasks + more, nbytes.saturating_add(more_bytes));
            tasks >= enough
        });
        (queue.tasks, queue.nbytes) = (queue.tasks - tasks, queue.nbytes.saturating_sub(nbytes));
        let end = last.map(|last| last + 1).filter(|end| *end < queue.waiting.len());
        (queue.taken, queue.told) = (tasks, end.is_some());
        let taken = match end {
            Some(end) => queue.waiting.drain(..end).collect(),
            None => mem::take(&mut queue.waiting),
        };
        drop(queue);
        self.taken.notify_all();
        if end.is_some() {
            self.changed.notify_one();
        }
        taken
    }

    /// Takes nothing any more, and gives what waits; `None` if that was said before.
    pub(super) fn end(&self, reason: Arc<str>) -> Option<VecDeque<Command>> {
        let mut queue = self.lock();
        if queue.closed.is_some() {
            return None;
        }
        queue.closed = Some(reason);
        self.taken.notify_all();
        Some(mem::take(&mut queue.waiting))
    }

    /// Why nothing is taken any more.
    pub(super) fn closed(&self) -> Option<Arc<str>> {
        self.lock().closed.clone()
    }

    /// Whether somebody wants the connection to be closed.
    pub(super) fn is_to_close(&self) -> bool {
        self.lock().waiting.iter().any(|command| matches!(command, Command::Close { .. }))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        Shared::lock(&self.queue)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Waker},
        thread,
        time::Duration,
    };

    use super::*;
    use crate::{
        graph::Arguments,
        task::{Plain, entry_of},
    };

    fn submit(tasks: usize) -> Command {
        let submission = |n: usize| Submission {
            entry: entry_of::<_, (), (), Plain>(|| 0u64),
            options: None,
            task: GraphTask {
                key: Key(n as u128),
                function: 0,
                options: 0,
                arguments: Arguments::default(),
                dependencies: Default::default(),
            },
            kept: Kept::default(),
        };
        Command::submit((0..tasks).map(submission).collect())
    }

    fn release(small: bool) -> Command {
        Command::Release { key: Key(1), small }
    }

    /// The tasks of each command that is taken.
    fn taken(commands: &Commands) -> Vec<usize> {
        commands.take().iter().map(|command| command.weight().0).collect()
    }

    fn is_told(commands: &Commands) -> bool {
        pin!(commands.changed()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn many_tasks_are_taken_some_at_a_time() {
        let commands = Commands::default();
        for tasks in [200, 100, 0, 1, 5000, 9000, 1000, 2, 3] {
            commands.put(submit(tasks));
        }
        commands.put(release(true));
        assert!(is_told(&commands));
        assert_eq!(taken(&commands), [200, 100]);
        assert!(is_told(&commands), "there is more");
        assert_eq!(taken(&commands), [0, 1, 5000]);
        // Twice as many as just now.
        assert_eq!(taken(&commands), [9000, 1000, 2]);
        assert_eq!(taken(&commands), [3, 0]);
        assert!(is_told(&commands), "by the third");
        assert!(!is_told(&commands) && taken(&commands).is_empty());
        let queue = commands.lock();
        assert_eq!((queue.tasks, queue.nbytes), (0, 0));
    }

    #[test]
    fn what_can_wait_wakes_nobody() {
        let commands = Commands::default();
        commands.put(release(true));
        assert!(!is_told(&commands));
        commands.put(release(false));
        commands.put(release(false));
        assert!(is_told(&commands) && !is_told(&commands), "once is enough");
        assert_eq!(taken(&commands), [0, 0, 0]);
        commands.put(release(false));
        assert!(is_told(&commands));
    }

    #[test]
    fn who_submits_too_much_waits_until_some_is_taken() {
        let commands = Arc::new(Commands::default());
        commands.put(submit(TASKS_WAITING));
        let more = commands.clone();
        let waiting = thread::spawn(move || more.put(submit(1)));
        thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        // What submits nothing does not wait.
        commands.put(release(false));
        assert_eq!(taken(&commands), [TASKS_WAITING]);
        waiting.join().unwrap();
        assert_eq!(taken(&commands).iter().sum::<usize>(), 1);
    }

    #[test]
    fn after_the_end_nothing_is_taken() {
        let commands = Commands::default();
        commands.put(submit(1));
        assert_eq!(commands.end("it was closed".into()).map(|waiting| waiting.len()), Some(1));
        commands.put(submit(TASKS_WAITING + 1));
        assert!(commands.take().is_empty() && commands.end("again".into()).is_none());
        assert_eq!(commands.closed().as_deref(), Some("it was closed"));
    }
}
