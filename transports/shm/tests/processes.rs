//! What only shows between processes: that memory outlives whoever ends, is counted once, and comes back.
//!
//! This program runs itself again for the other side, which does as its arguments say and ends with the
//! standard input that it is given.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use libtest_mimic::{Arguments, Failed, Trial};
use rankine_transport::{Address, AlignedBuffer, Connection, Error, Limits, Listener, Message, Transport};
use rankine_transport_shm::{Shm, borrowed, lent};
use tokio::runtime::Runtime;

const OTHER_SIDE: &str = "RANKINE_TEST_OTHER_SIDE";
const MIB: usize = 1 << 20;

type Outcome = Result<(), Failed>;
type Test = fn() -> Outcome;

fn main() -> ExitCode {
    if let Ok(role) = env::var(OTHER_SIDE) {
        // Nothing is left running whatever becomes of the test.
        std::thread::spawn(|| {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            std::process::exit(0);
        });
        let args: Vec<String> = env::args().skip(1).collect();
        return match roles(&role, &args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("failed: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let mut arguments = Arguments::from_args();
    // They look at memory that all processes of the host share.
    arguments.test_threads = Some(1);
    let tests: Vec<(&str, Test)> = vec![
        ("what_a_killed_sender_lent_is_read_to_the_end", what_a_killed_sender_lent_is_read_to_the_end),
        ("memory_lent_to_a_killed_receiver_comes_back", memory_lent_to_a_killed_receiver_comes_back),
        ("a_shared_chunk_is_counted_once", a_shared_chunk_is_counted_once),
        ("out_of_shared_memory_is_an_error_that_says_so", out_of_shared_memory_is_an_error_that_says_so),
        ("without_descriptors_frames_take_the_socket", without_descriptors_frames_take_the_socket),
        ("another_user_is_refused", another_user_is_refused),
        ("chunks_cross_processes_under_load", chunks_cross_processes_under_load),
    ];
    let trials = tests.into_iter().map(|(name, test)| Trial::test(name, test)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Another process, which is gone when this is.
struct Other {
    child: Child,
    _stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Other {
    fn start(role: &str, args: &[&str], prepare: impl Fn() + Send + Sync + 'static) -> Result<Self, Failed> {
        let mut command = Command::new(env::current_exe()?);
        command.env(OTHER_SIDE, role).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        // SAFETY: what the tests prepare are single system calls on the new process itself.
        unsafe {
            command.pre_exec(move || {
                prepare();
                Ok(())
            })
        };
        let mut child = command.spawn()?;
        let (stdin, stdout) =
            (child.stdin.take().ok_or("no stdin")?, child.stdout.take().ok_or("no stdout")?);
        Ok(Self { child, _stdin: stdin, stdout: BufReader::new(stdout) })
    }

    /// The next line it says.
    fn says(&mut self) -> Result<String, Failed> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Ends it as nothing can resist.
    fn kill(&mut self) -> Outcome {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

fn say(what: impl std::fmt::Display) {
    println!("{what}");
    let _ = std::io::stdout().flush();
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

async fn listen() -> Result<Box<dyn Listener>, Error> {
    Shm.listen(&Address::new("shm", "*")).await
}

async fn accept(listener: &mut Box<dyn Listener>) -> Result<Connection, Error> {
    let mut connection = listener.accept().await?;
    connection.receiver.set_limits(Limits::PEER);
    Ok(connection)
}

async fn connect(address: &str) -> Result<Connection, Error> {
    let mut connection = Shm.connect(&address.parse()?).await?;
    connection.receiver.set_limits(Limits::PEER);
    Ok(connection)
}

/// A chunk of pages each of which tells its place.
fn chunk(mib: usize, seed: u8) -> Result<Bytes, std::io::Error> {
    let mut buffer = AlignedBuffer::new((mib * MIB) as u64)?;
    for i in 0..mib * MIB / 4096 {
        buffer.extend(&[page(i, seed); 4096]);
    }
    Ok(buffer.freeze())
}

fn page(i: usize, seed: u8) -> u8 {
    (i.wrapping_mul(2_654_435_761) >> 11) as u8 ^ seed
}

fn is_whole(chunk: &[u8], seed: u8) -> bool {
    chunk.chunks(4096).enumerate().all(|(i, bytes)| *bytes == [page(i, seed); 4096][..bytes.len()])
}

/// A figure of a file of /proc, in KiB.
fn figure(file: &str, name: &str) -> Result<u64, Failed> {
    let text = fs::read_to_string(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).ok_or("no such figure")?;
    Ok(line.trim_start_matches(':').split_whitespace().next().ok_or("no figure")?.parse()?)
}

/// MiB of memory in files that all processes of this host have, some of which others may take or leave
/// meanwhile.
fn shared() -> Result<u64, Failed> {
    Ok(figure("/proc/meminfo", "Shmem")? >> 10)
}

/// MiB of segments that this process maps.
fn mapped() -> Result<u64, Failed> {
    let mut bytes = 0;
    for line in fs::read_to_string("/proc/self/maps")?.lines().filter(|line| line.contains("memfd:rankine")) {
        let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
        let (start, end) = range.ok_or("a mapping without addresses")?;
        bytes += u64::from_str_radix(end, 16)? - u64::from_str_radix(start, 16)?;
    }
    Ok(bytes >> 20)
}

fn eventually(what: &str, mut is: impl FnMut() -> Result<bool, Failed>) -> Outcome {
    let start = Instant::now();
    while !is()? {
        if start.elapsed() > Duration::from_secs(10) {
            return Err(format!("not within 10 s: {what}").into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// What the other sides do.
fn roles(role: &str, args: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let runtime = runtime();
    let wait = || loop {
        std::thread::park();
    };
    match role {
        // Sends chunks of these sizes in MiB.
        "sender" => runtime.block_on(async {
            let mut connection = connect(&args[0]).await?;
            for (seed, mib) in args[1..].iter().enumerate() {
                let message = Message::new("", vec![chunk(mib.parse()?, seed as u8)?]);
                connection.sender.send(message).await?;
            }
            say("sent");
            // What is returned is heard meanwhile.
            std::future::pending().await
        }),
        // Takes one chunk, reads all of it, and keeps it.
        "keeper" => runtime.block_on(async {
            let mut connection = connect(&args[0]).await?;
            let message = connection.receiver.recv().await?.ok_or("a message")?;
            say(is_whole(&message.frames[0], 0));
            say(borrowed());
            std::future::pending().await
        }),
        // Sends back whatever comes.
        "echo" => runtime.block_on(async {
            let mut connection = connect(&args[0]).await?;
            while let Some(message) = connection.receiver.recv().await? {
                connection.sender.send(message).await?;
            }
            connection.sender.close().await?;
            Ok(())
        }),
        // Tells what comes of a big chunk and of a small one where files may have 1 MiB.
        "scarce" => runtime.block_on(async {
            let mut connection = connect(&args[0]).await?;
            say(match chunk(4, 0) {
                Ok(_) => "there is memory".into(),
                Err(error) => error.to_string(),
            });
            let vector = Bytes::from(chunk_in_a_vector(4, 1));
            connection.sender.send(Message::new("", vec![vector])).await?;
            wait()
        }),
        "stranger" => runtime.block_on(async {
            say(match connect(&args[0]).await {
                Ok(_) => "let in".into(),
                Err(error) => error.to_string(),
            });
            wait()
        }),
        other => Err(format!("no role {other}").into()),
    }
}

fn chunk_in_a_vector(mib: usize, seed: u8) -> Vec<u8> {
    (0..mib * MIB / 4096).flat_map(|i| [page(i, seed); 4096]).collect()
}

fn what_a_killed_sender_lent_is_read_to_the_end() -> Outcome {
    const MUCH: usize = 320;
    let before = mapped()?;
    runtime().block_on(async {
        let mut listener = listen().await?;
        let mut sender = Other::start("sender", &[listener.address().as_str(), "320", "320"], || {})?;
        let mut connection = accept(&mut listener).await?;
        let first = connection.receiver.recv().await?.ok_or("a message")?.frames.remove(0);
        assert_eq!(sender.says()?, "sent");
        sender.kill()?;
        // One was taken, one is still on its way.
        assert!(is_whole(&first, 0) && first.len() == MUCH * MIB);
        let second = connection.receiver.recv().await?.ok_or("a message")?.frames.remove(0);
        assert!(is_whole(&second, 1) && second.len() == MUCH * MIB);
        let ended = connection.receiver.recv().await;
        assert!(matches!(ended, Err(Error::Lost { .. })), "{ended:?}");
        assert_eq!(mapped()? - before, 2 * MUCH as u64);
        drop(connection);
        let part = second.slice(50 * MIB..);
        drop((first, second));
        assert_eq!(part[0], page(50 * MIB / 4096, 1));
        let full = shared()?;
        drop(part);
        eventually("the memory is the system's again", || Ok(shared()? + MUCH as u64 / 2 < full))?;
        assert_eq!((borrowed(), mapped()?), (0, before));
        Ok(())
    })
}

fn memory_lent_to_a_killed_receiver_comes_back() -> Outcome {
    const MUCH: usize = 320;
    let before = mapped()?;
    runtime().block_on(async {
        let mut listener = listen().await?;
        let mut keeper = Other::start("keeper", &[listener.address().as_str()], || {})?;
        let mut connection = accept(&mut listener).await?;
        connection.sender.send(Message::new("", vec![chunk(MUCH, 0)?])).await?;
        assert_eq!(keeper.says()?, "true");
        assert_eq!(keeper.says()?, (MUCH * MIB).to_string());
        assert_eq!(lent(), (MUCH * MIB) as u64);
        let full = shared()?;
        keeper.kill()?;
        let ended = connection.receiver.recv().await;
        assert!(matches!(ended, Err(Error::Lost { .. })), "{ended:?}");
        // Nobody else has it, so it is gone, although this process goes on, and the connection is still held.
        for _ in 0..500 {
            if lent() == 0 && mapped()? == before && shared()? + MUCH as u64 / 2 < full {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(format!("{} bytes lent, {} MiB mapped, {} MiB shared of {full}", lent(), mapped()?, shared()?)
            .into())
    })
}

/// The shares of two processes in 256 MiB that both have read are 256 MiB together.
fn a_shared_chunk_is_counted_once() -> Outcome {
    const MUCH: u64 = 256;
    runtime().block_on(async {
        let mut listener = listen().await?;
        let mut keeper = Other::start("keeper", &[listener.address().as_str()], || {})?;
        let mut connection = accept(&mut listener).await?;
        let other = format!("/proc/{}/smaps_rollup", keeper.child.id());
        let share = |file: &str, name| figure(file, name).map(|kib| kib >> 10);
        let before = share("/proc/self/smaps_rollup", "Pss")?;
        let frame = chunk(MUCH as usize, 0)?;
        connection.sender.send(Message::new("", vec![frame.clone()])).await?;
        assert_eq!(keeper.says()?, "true");
        let told: u64 = keeper.says()?.parse()?;
        let (ours, theirs) = (share("/proc/self/smaps_rollup", "Pss")? - before, share(&other, "Pss")?);
        println!("{MUCH} MiB shared: {ours} MiB here and {theirs} MiB there");
        assert!((MUCH - 16..MUCH + 32).contains(&(ours + theirs)), "{ours} + {theirs}");
        assert!(ours.abs_diff(theirs) < 40, "half each: {ours} and {theirs}");
        // Its resident set counts all of it; without what it says it borrowed, what is left is its own.
        let resident = share(&other, "Rss")?;
        assert!(resident >= MUCH && resident - (told >> 20) < 32, "{resident} MiB, {told} borrowed");
        Ok(())
    })
}

/// A file of more than the limit would end the process by a signal.
fn out_of_shared_memory_is_an_error_that_says_so() -> Outcome {
    runtime().block_on(async {
        let mut listener = listen().await?;
        let limit = || {
            let limit = libc::rlimit { rlim_cur: MIB as u64, rlim_max: MIB as u64 };
            // SAFETY: a system call that reads one structure.
            unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) };
        };
        let mut scarce = Other::start("scarce", &[listener.address().as_str()], limit)?;
        let mut connection = accept(&mut listener).await?;
        let said = scarce.says()?;
        assert!(said.contains("out of shared memory") && said.contains("ulimit -f"), "{said}");
        // What it has elsewhere it can still send.
        let message = connection.receiver.recv().await?.ok_or("a message")?;
        assert!(is_whole(&message.frames[0], 1));
        Ok::<_, Failed>(())
    })?;
    // More than the host has is refused before anything is taken.
    let error = AlignedBuffer::new(1 << 44).err().ok_or("16 TiB are there")?.to_string();
    assert!(error.contains("out of shared memory") && error.contains("smaller chunks"), "{error}");
    Ok(())
}

fn without_descriptors_frames_take_the_socket() -> Outcome {
    runtime().block_on(async {
        let mut listener = listen().await?;
        let limit = || {
            let limit = libc::rlimit { rlim_cur: 30, rlim_max: 30 };
            // SAFETY: a system call that reads one structure.
            unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
        };
        let sizes = ["1"; 40];
        let args: Vec<&str> = [&[listener.address().as_str()][..], &sizes].concat();
        let mut sender = Other::start("sender", &args, limit)?;
        let mut connection = accept(&mut listener).await?;
        let mut frames = Vec::new();
        for seed in 0..sizes.len() {
            frames.push(connection.receiver.recv().await?.ok_or("a message")?.frames.remove(0));
            assert!(is_whole(&frames[seed], seed as u8));
        }
        assert_eq!(sender.says()?, "sent");
        // Half of 30 descriptors were segments', the other frames came as bytes.
        let from_others = borrowed() / MIB as u64;
        assert!((10..=15).contains(&from_others), "{from_others}");
        Ok(())
    })
}

fn another_user_is_refused() -> Outcome {
    // SAFETY: a system call without arguments.
    if unsafe { libc::geteuid() } != 0 {
        println!("SKIPPED another_user_is_refused: only root can become another user");
        return Ok(());
    }
    runtime().block_on(async {
        let mut listener = listen().await?;
        let nobody = || {
            // SAFETY: a system call on the process itself.
            unsafe { libc::setuid(65_534) };
        };
        let mut stranger = Other::start("stranger", &[listener.address().as_str()], nobody)?;
        let said = stranger.says()?;
        assert!(said.contains("belongs to user 0") && said.contains("65534"), "{said}");
        let accepted = tokio::time::timeout(Duration::from_secs(5), listener.accept()).await?;
        let error = accepted.err().ok_or("it is not accepted")?.to_string();
        assert!(error.contains("65534") && error.contains("only processes of one user"), "{error}");
        Ok(())
    })
}

/// Chunks of many sizes there and back, some kept for a while: each arrives as it was.
fn chunks_cross_processes_under_load() -> Outcome {
    runtime().block_on(async {
        let mut listener = listen().await?;
        let mut echo = Other::start("echo", &[listener.address().as_str()], || {})?;
        let Connection { mut sender, mut receiver, .. } = accept(&mut listener).await?;
        const COUNT: usize = 600;
        let send = async {
            for i in 0..COUNT {
                let frames = match i % 4 {
                    0 => vec![chunk(1 + i % 7, i as u8)?],
                    1 => vec![Bytes::from(chunk_in_a_vector(1, i as u8))],
                    2 => vec![chunk(2, i as u8)?.slice(..100 << 10), chunk(1, i as u8)?],
                    _ => vec![chunk(1, i as u8)?.slice(..8192)],
                };
                sender.send(Message::new(i.to_le_bytes().to_vec(), frames)).await?;
            }
            sender.close().await?;
            Ok::<_, Failed>(())
        };
        let receive = async {
            let mut kept = std::collections::VecDeque::new();
            for i in 0..COUNT {
                let message = receiver.recv().await?.ok_or("a message")?;
                assert_eq!(message.head[..], i.to_le_bytes());
                kept.push_back((i, message));
                if kept.len() > i % 30 {
                    for (i, message) in kept.drain(..) {
                        assert!(message.frames.iter().all(|frame| is_whole(frame, i as u8)), "message {i}");
                    }
                }
            }
            assert!(receiver.recv().await?.is_none());
            Ok::<_, Failed>(())
        };
        let (sent, received) = tokio::join!(send, receive);
        sent?;
        received?;
        assert!(echo.child.wait()?.success());
        Ok::<_, Failed>(())
    })?;
    eventually("nothing is lent or borrowed", || Ok(lent() == 0 && borrowed() == 0))
}
