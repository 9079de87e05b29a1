//! Bytes and words that nobody of ours would send: every decoder refuses them, and no state machine
//! breaks, whatever it is told.

use std::{fs, os::unix::fs::PermissionsExt, sync::Arc};

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};
use rankine::{
    SchedulerFile,
    array::NpyFile,
    graph::{Arguments, Function, Graph, GraphTask, Key, TaskOptions},
    protocol::{
        Dependency, Finished, FromClient, FromPeer, FromWorker, Metrics, Opening, Query, Scattered, TaskId,
        ToClient, ToPeer, ToWorker, WorkerId, WorkerInfo,
    },
    scheduler::{self, Stimulus},
    serialize::{Frame, from_frames, to_frames},
    task::{EntryRef, FailureKind, TaskError, Value},
    worker,
};

/// A message as it might be, to be damaged.
fn whole() -> Bytes {
    let entry = EntryRef { module: 1, offset: 64, name: 7 };
    let task = GraphTask {
        key: Key(1),
        function: 0,
        options: 0,
        dependencies: [Key(2), Key(3)].into_iter().collect(),
        arguments: Arguments::new(vec![1; 20].into(), vec![]),
    };
    let many = Arguments::new(vec![1; 50].into(), vec![Frame(vec![2; 10].into())]);
    let graph = Graph {
        functions: vec![Function { entry, name: "f".into() }],
        options: vec![TaskOptions { workers: vec!["here".into()], ..TaskOptions::default() }],
        tasks: vec![task.clone(), GraphTask { arguments: many, ..task.clone() }, task],
    };
    let messages = vec![
        FromClient::Submit { graph, wants: vec![Key(1)] },
        FromClient::Ask {
            id: 1,
            query: Query::Run { entry, arguments: Arguments::default(), workers: vec![] },
        },
        FromClient::Scattered(vec![Scattered { key: Key(1), id: TaskId(1), nbytes: 8, workers: vec![] }]),
    ];
    to_frames(&messages).expect("it can be written").0
}

/// Reads bytes as a batch of each kind of message. Only that it returns matters.
fn decode_as_all(head: Bytes, frames: Vec<Bytes>) {
    let _ = from_frames::<Vec<FromClient>>(head.clone(), frames.clone());
    let _ = from_frames::<Vec<ToClient>>(head.clone(), frames.clone());
    let _ = from_frames::<Vec<FromWorker>>(head.clone(), frames.clone());
    let _ = from_frames::<Vec<ToWorker>>(head.clone(), frames.clone());
    let _ = from_frames::<Vec<FromPeer>>(head.clone(), frames.clone());
    let _ = from_frames::<Vec<ToPeer>>(head.clone(), frames.clone());
    let _ = from_frames::<Vec<Opening>>(head, frames);
}

/// What a client or a worker might say, of few keys and ids so that they meet.
fn words() -> impl Strategy<Value = Word> {
    let id = || (0u32..4, 0u32..3).prop_map(|(index, generation)| TaskId::new(index, generation));
    let key = || (0u128..4).prop_map(Key);
    let peer = || (0u32..4).prop_map(WorkerId);
    let amount = || prop_oneof![Just(0u64), Just(8), Just(u64::MAX), Just(u64::MAX / 2)];
    let task =
        (key(), vec(key(), 0..3), 0u32..3, 0u32..3).prop_map(|(key, dependencies, function, options)| {
            GraphTask {
                key,
                function,
                options,
                dependencies: dependencies.into_iter().collect(),
                arguments: Arguments::default(),
            }
        });
    let graph = (vec(task, 0..4), vec(key(), 0..4)).prop_map(|(tasks, wants)| {
        let entry = EntryRef { module: 0, offset: 8, name: 1 };
        let options = TaskOptions {
            priority: i32::MIN,
            retries: 1,
            resources: vec![("gpu".into(), f64::NAN)],
            ..TaskOptions::default()
        };
        let functions = vec![Function { entry, name: "f".into() }];
        Word::Client(FromClient::Submit {
            graph: Graph { functions, options: vec![TaskOptions::default(), options], tasks },
            wants,
        })
    });
    let finished = (id(), amount(), amount()).prop_map(|(id, nbytes, duration)| {
        FromWorker::Finished(Finished { id, nbytes, duration, value: None })
    });
    let error = || TaskError::new(FailureKind::Failed, "no");
    let from_worker = prop_oneof![
        4 => finished,
        1 => id().prop_map(move |id| FromWorker::Erred { id, error: error() }),
        2 => vec(id(), 0..3).prop_map(FromWorker::Added),
        2 => (id(), proptest::option::of(peer())).prop_map(|(id, holder)| FromWorker::Missing { id, holder }),
        1 => id().prop_map(FromWorker::LongRunning),
        1 => Just(FromWorker::Heartbeat(Metrics::default())),
        1 => Just(FromWorker::Leaving),
    ];
    prop_oneof![
        4 => graph,
        1 => vec(key(), 0..4).prop_map(|keys| Word::Client(FromClient::Release(keys))),
        1 => (vec(key(), 0..4), any::<bool>())
            .prop_map(|(keys, force)| Word::Client(FromClient::Cancel { keys, force })),
        1 => vec(key(), 0..3)
            .prop_map(|keys| Word::Client(FromClient::Ask { id: 0, query: Query::Reserve(keys) })),
        1 => (key(), id(), amount(), vec(peer(), 0..3)).prop_map(|(key, id, nbytes, workers)| {
            Word::Client(FromClient::Scattered(vec![Scattered { key, id, nbytes, workers }]))
        }),
        1 => (id(), peer()).prop_map(|(id, worker)| Word::Client(FromClient::Missing { id, worker })),
        12 => (peer(), from_worker).prop_map(|(worker, message)| Word::Worker(worker, message)),
        1 => peer().prop_map(Word::Gone),
        1 => Just(Word::Join),
        1 => Just(Word::Tick),
    ]
}

#[derive(Debug, Clone)]
enum Word {
    Client(FromClient),
    Worker(WorkerId, FromWorker),
    Gone(WorkerId),
    Join,
    Tick,
}

/// What a scheduler or a peer might tell a worker.
fn orders() -> impl Strategy<Value = worker::Stimulus> {
    let id = || (0u32..5, 0u32..2).prop_map(|(index, generation)| TaskId::new(index, generation));
    let peer = || (0u32..3).prop_map(WorkerId);
    let amount = || prop_oneof![Just(0u64), Just(8), Just(u64::MAX)];
    let dependency = move || {
        (id(), amount(), vec(peer(), 0..3), any::<bool>()).prop_map(|(id, nbytes, who_has, passing)| {
            Dependency { id, nbytes, who_has: who_has.into_iter().collect(), passing }
        })
    };
    let compute = (id(), vec(dependency(), 0..3), any::<bool>()).prop_map(|(id, dependencies, gpu)| {
        let resources = if gpu { vec![("gpu".into(), 1.0)] } else { vec![] };
        worker::Stimulus::Compute(Arc::new(rankine::protocol::ComputeTask {
            id,
            key: Key(1),
            entry: EntryRef { module: 0, offset: 8, name: 1 },
            arguments: Arguments::default(),
            dependencies,
            priority: Default::default(),
            resources,
            wanted: true,
            dependents: 0,
            height: 0,
            critical: u32::MAX,
        }))
    });
    let error = || TaskError::new(FailureKind::Failed, "no");
    let gathered = (peer(), vec((id(), 0..3u8), 0..3)).prop_map(move |(peer, data)| {
        let answer = |kind| match kind {
            0 => None,
            1 => Some(Err(error())),
            _ => Some(Ok(Value::new(1i64))),
        };
        let data = data.into_iter().map(|(id, kind)| (id, answer(kind))).collect();
        worker::Stimulus::Gathered { peer, data }
    });
    // The compute threads are the worker's own: their figures are real.
    let executed =
        (id(), any::<bool>(), 0..1000u64, 0..1000u64).prop_map(move |(id, good, nbytes, duration)| {
            let result = if good { Ok(Value::new(1i64)) } else { Err(error()) };
            worker::Stimulus::Executed { id, result, nbytes, duration }
        });
    prop_oneof![
        4 => compute,
        2 => vec(id(), 0..3).prop_map(|ids| worker::Stimulus::Free(ids.into())),
        1 => vec(dependency(), 0..3).prop_map(worker::Stimulus::Acquire),
        1 => vec(dependency(), 0..3).prop_map(worker::Stimulus::WhoHas),
        1 => peer().prop_map(worker::Stimulus::PeerGone),
        1 => vec(id(), 0..3)
            .prop_map(|ids| worker::Stimulus::Put(ids.into_iter().map(|id| (id, Value::new(2i64))).collect())),
        4 => gathered,
        1 => (peer(), vec(id(), 0..3)).prop_map(|(peer, ids)| worker::Stimulus::GatherFailed { peer, ids }),
        4 => executed,
        1 => id().prop_map(worker::Stimulus::Seceded),
        1 => (id(), peer()).prop_map(|(id, to)| worker::Stimulus::Forward { id, to }),
        1 => vec(id(), 0..3).prop_map(|ids| {
            worker::Stimulus::Forwarded(ids.into_iter().map(|id| (id, Value::new(2i64))).collect())
        }),
        1 => vec(id(), 0..3).prop_map(worker::Stimulus::Unstarted),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn random_bytes_are_refused(head in vec(any::<u8>(), 0..200), frames in vec(vec(any::<u8>(), 0..50), 0..3)) {
        decode_as_all(head.into(), frames.into_iter().map(Bytes::from).collect());
    }

    #[test]
    fn damaged_messages_are_refused(
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        length in any::<prop::sample::Index>(),
        cut: bool,
    ) {
        let mut bytes = whole().to_vec();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if cut {
            bytes.truncate(length.index(bytes.len()));
        }
        decode_as_all(bytes.into(), vec![]);
    }

    #[test]
    fn a_scheduler_stands_whatever_it_is_told(words in vec(words(), 0..60)) {
        let mut state = scheduler::State::new(scheduler::Config::default());
        let client = state.add_client();
        let mut now = 0;
        let join = |state: &mut scheduler::State, now| {
            let info = WorkerInfo {
                name: "w".into(),
                address: "inproc://w".into(),
                contact: "inproc://w".into(),
                nthreads: 0,
                memory_limit: 0,
                resources: vec![("gpu".into(), f64::INFINITY)],
                pid: 0,
                host: "here".into(),
                lifetime: None,
            };
            state.add_worker(info, now);
        };
        join(&mut state, now);
        for word in words {
            now += 20_000_000_000;
            match word {
                Word::Client(message) => drop(state.handle(Stimulus::Client(client, message), now)),
                Word::Worker(worker, message) => drop(state.handle(Stimulus::Worker(worker, message), now)),
                Word::Gone(worker) => {
                    drop(state.handle(Stimulus::RemoveWorker { worker, expected: false }, now));
                }
                Word::Join => join(&mut state, now),
                Word::Tick => drop(state.handle(Stimulus::Tick, now)),
            }
            state.validate();
        }
        state.handle(Stimulus::RemoveClient(client), now);
        prop_assert_eq!(state.task_count(), 0);
    }

    #[test]
    fn a_worker_stands_whatever_it_is_told(orders in vec(orders(), 0..60)) {
        let resources = vec![("gpu".into(), 1.0)];
        let mut state = worker::State::new(worker::Config {
            nthreads: 1,
            memory_limit: 100,
            thresholds: worker::Thresholds::default(),
            resources,
            chains: true,
        });
        for (now, order) in orders.into_iter().enumerate() {
            state.handle(order, now as u64);
            state.validate();
        }
    }

    #[test]
    fn damaged_files_are_refused(bytes in vec(any::<u8>(), 0..200), place: prop::sample::Index, byte: u8) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let _ = SchedulerFile::read(&path);
            if let Ok(file) = NpyFile::open(&path) {
                // What is taken for a file can be read to its end.
                for axis in 0..file.shape().len() {
                    let _ = file.chunk::<f64>(axis, 0..file.shape()[axis]).map(|chunk| chunk.to_array());
                }
            }
        };
        read(&bytes);
        let mut file = b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }      \n".to_vec();
        file.extend([0; 48]);
        let place = place.index(file.len());
        file[place] = byte;
        read(&file);
    }
}
