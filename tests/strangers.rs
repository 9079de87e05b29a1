//! Who comes to the cluster's door over the wire without being one of us, or with bad intent: refused
//! with a clear error, and the cluster lives on.
//!
//! The binary is its own worker, so `main` begins with `rankine::init()`.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use libtest_mimic::{Arguments, Failed, Trial};
use rankine::{
    LocalCluster,
    blocking::Client,
    graph::{Arguments as Encoded, Function, Graph, GraphTask, Key},
    protocol::{Answer, FromClient, FromPeer, Hello, Opening, Query, TaskId, ToClient, ToPeer},
    serialize::{from_frames, to_frames},
    task::{EntryRef, build_id},
};
use rankine_transport::{Address, Connection, Message, Registry, Secret, Side, authenticate};
use rankine_transport_tcp::Tcp;
use serde::{Serialize, de::DeserializeOwned};

/// What the head of a message ends with whose frames are as they are.
const NOTHING_COMPRESSED: [u8; 4] = [0; 4];

type Outcome = Result<(), Failed>;

fn main() {
    rankine::init();
    let arguments = Arguments::from_args();
    macro_rules! tests {
        ($($name:ident),* $(,)?) => {
            vec![$(Trial::test(stringify!($name), || {
                let cluster = LocalCluster::builder().workers(1).threads(1).processes(true).start()?;
                let client = Client::from(cluster.client()?);
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on($name(&cluster))?;
                // Whatever was done to it, the cluster works.
                assert_eq!(client.submit(|x: i64| x + 1, (1,)).result()?, 2);
                Ok(())
            })),*]
        };
    }
    let trials = tests!(
        another_executable_is_refused_with_both_build_ids,
        a_wrong_secret_opens_nothing,
        noise_before_the_secret_is_not_parsed,
        noise_after_the_secret_ends_the_link_alone,
        a_forged_function_is_refused_with_its_reason,
        a_client_that_vanishes_releases_what_it_held,
        a_role_at_the_wrong_door_is_refused,
        an_observer_looks_and_changes_nothing,
        a_worker_gives_strangers_nothing,
    );
    libtest_mimic::run(&arguments, trials).exit();
}

/// What the scheduler file says: the address and the secret.
fn file(cluster: &LocalCluster) -> (Address, Secret) {
    let file = serde_json::to_value(cluster.scheduler_file()).expect("it is JSON");
    let text = |name: &str| file[name].as_str().expect("it is a string").to_owned();
    let secret = Secret::from_hex(&text("secret")).expect("it is a secret");
    (text("address").parse().expect("it is an address"), secret)
}

async fn connect(address: &Address) -> Result<Connection, Failed> {
    Ok(Registry::new().with(Tcp::default()).connect(address).await?)
}

async fn send<M: Serialize>(connection: &mut Connection, messages: &[M]) -> Outcome {
    let (head, frames) = to_frames(messages)?;
    let head = [&head[..], &NOTHING_COMPRESSED].concat();
    Ok(connection.sender.send(Message::new(head, frames)).await?)
}

/// The next messages, if any come within reasonable time.
async fn receive<M: DeserializeOwned>(connection: &mut Connection) -> Result<Vec<M>, Failed> {
    let waited = tokio::time::timeout(Duration::from_secs(10), connection.receiver.recv()).await?;
    let message = waited?.ok_or("the link was closed")?;
    let head = message.head.slice(..message.head.len() - NOTHING_COMPRESSED.len());
    Ok(from_frames(head, message.frames)?)
}

/// Whether the other side ends the link within reasonable time.
async fn ended(connection: &mut Connection) -> bool {
    let gone = async { while let Ok(Some(_)) = connection.receiver.recv().await {} };
    tokio::time::timeout(Duration::from_secs(10), gone).await.is_ok()
}

/// A link to `address` on which the secret is proved and an opening was sent.
async fn opened(address: &Address, secret: &Secret, hello: Hello) -> Result<Connection, Failed> {
    let mut connection = connect(address).await?;
    authenticate(&mut connection, secret, Side::Connecting).await?;
    send(&mut connection, &[Opening { build: build_id().to_owned(), hello }]).await?;
    let answer: Vec<Opening> = receive(&mut connection).await?;
    assert_eq!(answer[0].build, build_id());
    Ok(connection)
}

/// What a client's link hears next of results.
async fn hear(connection: &mut Connection) -> Result<ToClient, Failed> {
    loop {
        let heard = receive::<ToClient>(connection).await?.into_iter();
        let result = heard.into_iter().find(|m| {
            matches!(m, ToClient::InMemory { .. } | ToClient::Erred { .. } | ToClient::Answer { .. })
        });
        if let Some(result) = result {
            return Ok(result);
        }
    }
}

async fn another_executable_is_refused_with_both_build_ids(cluster: &LocalCluster) -> Outcome {
    let (address, secret) = file(cluster);
    let mut connection = connect(&address).await?;
    authenticate(&mut connection, &secret, Side::Connecting).await?;
    send(&mut connection, &[Opening { build: "f00dfeed".into(), hello: Hello::Client }]).await?;
    let answer: Vec<Opening> = receive(&mut connection).await?;
    assert_eq!(answer[0].build, build_id(), "the stranger is told what runs here");
    assert!(ended(&mut connection).await);

    // And the other way round: a scheduler that is another executable.
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let elsewhere = format!("tcp://{}", listener.local_addr()?);
    drop(listener);
    let mut listener = Registry::new().with(Tcp::default()).listen(&elsewhere.parse()?).await?;
    let theirs = secret.clone();
    let impostor = async {
        let mut connection = listener.accept().await?;
        authenticate(&mut connection, &theirs, Side::Accepting).await?;
        send(&mut connection, &[Opening { build: "f00dfeed".into(), hello: Hello::Peer }]).await?;
        let _ = ended(&mut connection).await;
        Ok::<(), Failed>(())
    };
    let mut file = cluster.scheduler_file().clone();
    file.address = elsewhere;
    let joining = tokio::task::spawn_blocking(move || rankine::Client::connect(&file).err());
    let (impostor, refused) = tokio::join!(impostor, joining);
    impostor?;
    let refused = refused?.ok_or("it took another executable for its own")?.to_string();
    assert!(refused.contains("f00dfeed") && refused.contains(build_id()), "{refused}");
    assert!(refused.contains("start all ranks from the same file"), "{refused}");
    Ok(())
}

async fn an_observer_looks_and_changes_nothing(cluster: &LocalCluster) -> Outcome {
    let (address, secret) = file(cluster);
    let observer = async |version: &str| -> Result<Connection, Failed> {
        let mut connection = connect(&address).await?;
        authenticate(&mut connection, &secret, Side::Connecting).await?;
        let hello = Hello::Observer { version: version.into() };
        send(&mut connection, &[Opening { build: "f00dfeed".into(), hello }]).await?;
        receive::<Opening>(&mut connection).await?;
        Ok(connection)
    };
    assert!(ended(&mut observer("0.0.0").await?).await, "its messages would be taken for others");
    let mut connection = observer(env!("CARGO_PKG_VERSION")).await?;
    let shutdown = Query::Shutdown { reason: None };
    let look = Query::Explain(vec![Key(7)]);
    let asks = [FromClient::Ask { id: 1, query: shutdown }, FromClient::Ask { id: 2, query: look }];
    send(&mut connection, &asks).await?;
    match hear(&mut connection).await? {
        ToClient::Answer { id: 2, answer } => match *answer {
            Answer::Explained(told) => assert_eq!(told[0].state, "unknown"),
            other => return Err(format!("{other:?}").into()),
        },
        other => return Err(format!("{other:?}").into()),
    }
    Ok(())
}

async fn a_wrong_secret_opens_nothing(cluster: &LocalCluster) -> Outcome {
    let mut connection = connect(&file(cluster).0).await?;
    let refused = authenticate(&mut connection, &Secret::random(), Side::Connecting).await;
    let refused = refused.err().ok_or("the wrong secret was taken")?.to_string();
    assert!(refused.contains("secret"), "{refused}");
    Ok(())
}

async fn noise_before_the_secret_is_not_parsed(cluster: &LocalCluster) -> Outcome {
    let address = file(cluster).0;
    let host = address.as_str().trim_start_matches("tcp://").to_owned();
    let lengths = [[0xff; 64].to_vec(), b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0; 3], vec![0; 100_000]];
    for noise in lengths {
        let mut socket = TcpStream::connect(&host)?;
        socket.set_read_timeout(Some(Duration::from_secs(15)))?;
        let _ = socket.write_all(&noise);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        // It may say who it is (magic and nonce), then it hangs up.
        let mut answer = Vec::new();
        let hung_up = socket.read_to_end(&mut answer);
        let in_time = !matches!(&hung_up, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock);
        assert!(in_time && answer.len() < 4096, "{hung_up:?}, {} bytes", answer.len());
    }
    Ok(())
}

async fn noise_after_the_secret_ends_the_link_alone(cluster: &LocalCluster) -> Outcome {
    let (address, secret) = file(cluster);
    let whole = [&[0xff; 40][..], &NOTHING_COMPRESSED].concat();
    for noise in [&[0xffu8; 40][..], &[1, 2, 3], &[], &[0; 4096], &whole] {
        let mut connection = opened(&address, &secret, Hello::Client).await?;
        let message = Message::new(noise.to_vec(), vec![]);
        connection.sender.send(message).await?;
        assert!(ended(&mut connection).await, "{noise:?}");
    }
    // A batch that is cut off: a real one without its last byte.
    let mut connection = opened(&address, &secret, Hello::Client).await?;
    let (head, frames) = to_frames(&[FromClient::Alive, FromClient::Release(vec![Key(1), Key(2)])])?;
    let cut = [&head[..head.len() - 1], &NOTHING_COMPRESSED].concat();
    connection.sender.send(Message::new(cut, frames)).await?;
    assert!(ended(&mut connection).await);
    // A head of the largest size that may be announced, and nothing behind it.
    let mut connection = connect(&address).await?;
    authenticate(&mut connection, &secret, Side::Connecting).await?;
    let opening = Opening { build: "x".repeat(8 << 20), hello: Hello::Client };
    let _ = send(&mut connection, &[opening]).await;
    assert!(ended(&mut connection).await);
    Ok(())
}

fn submission(entry: EntryRef, key: u128) -> FromClient {
    let graph = Graph {
        functions: vec![Function { entry, name: "forged".into() }],
        options: vec![],
        tasks: vec![GraphTask {
            key: Key(key),
            function: 0,
            options: u32::MAX,
            dependencies: Default::default(),
            arguments: Encoded::default(),
        }],
    };
    FromClient::Submit { graph, wants: vec![Key(key)] }
}

async fn a_forged_function_is_refused_with_its_reason(cluster: &LocalCluster) -> Outcome {
    let (address, secret) = file(cluster);
    let mut connection = opened(&address, &secret, Hello::Client).await?;
    let forged = [
        (EntryRef { module: 0, offset: 0, name: 1 }, "no function at offset 0x0"),
        (EntryRef { module: 0, offset: 1 << 40, name: 1 }, "read-only memory"),
        (EntryRef { module: 0, offset: u64::MAX, name: 1 }, "no function at offset"),
        (EntryRef { module: 99, offset: 64, name: 1 }, "no such module"),
    ];
    for (i, (entry, why)) in forged.into_iter().enumerate() {
        send(&mut connection, &[submission(entry, i as u128 + 1)]).await?;
        let ToClient::Erred { error, .. } = hear(&mut connection).await? else {
            return Err("a forged function ran".into());
        };
        let error = error.to_string();
        assert!(error.contains(why) && error.contains("same executable"), "{error}");
    }
    // A function number that the graph does not have, and one that needs itself.
    let FromClient::Submit { mut graph, wants } = submission(EntryRef { module: 0, offset: 8, name: 1 }, 77)
    else {
        unreachable!()
    };
    graph.functions.clear();
    send(&mut connection, &[FromClient::Submit { graph, wants }]).await?;
    let ToClient::Erred { error, .. } = hear(&mut connection).await? else {
        return Err("a task without a function ran".into());
    };
    assert!(error.to_string().contains("does not have"), "{error}");
    Ok(())
}

async fn a_client_that_vanishes_releases_what_it_held(cluster: &LocalCluster) -> Outcome {
    let (address, secret) = file(cluster);
    let client = cluster.client()?;
    let before = client.scheduler_info().await?.clients;
    let mut connection = opened(&address, &secret, Hello::Client).await?;
    // It reserves a name, as for data to be scattered, and is gone without a word.
    let query = rankine::protocol::Query::Reserve(vec![Key(5)]);
    send(&mut connection, &[FromClient::Ask { id: 1, query }]).await?;
    assert!(matches!(hear(&mut connection).await?, ToClient::Answer { id: 1, .. }));
    let held = client.scheduler_info().await?;
    assert_eq!((held.clients, held.tasks.len()), (before + 1, 1));
    drop(connection);
    for _ in 0..1000 {
        let info = client.scheduler_info().await?;
        if info.clients == before && info.tasks.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Err("what it held is still there".into())
}

async fn a_role_at_the_wrong_door_is_refused(cluster: &LocalCluster) -> Outcome {
    let (address, secret) = file(cluster);
    let mut connection = opened(&address, &secret, Hello::Peer).await?;
    assert!(ended(&mut connection).await, "a peer has no business with the scheduler");
    // A client that speaks as a worker: its words mean something else and end the link, or nothing.
    let mut connection = opened(&address, &secret, Hello::Client).await?;
    let words = [rankine::protocol::FromWorker::Added(vec![TaskId(u64::MAX); 1000])];
    send(&mut connection, &words).await?;
    assert!(ended(&mut connection).await);
    Ok(())
}

async fn a_worker_gives_strangers_nothing(cluster: &LocalCluster) -> Outcome {
    let (_, secret) = file(cluster);
    let client = cluster.client()?;
    let worker: Address = client.scheduler_info().await?.workers[0].info.address.parse()?;
    let mut connection = connect(&worker).await?;
    assert!(authenticate(&mut connection, &Secret::random(), Side::Connecting).await.is_err());
    // One of us that asks for what is not there is told so.
    let mut connection = opened(&worker, &secret, Hello::Peer).await?;
    send(&mut connection, &[FromPeer::Get { request: 3, ids: vec![TaskId(u64::MAX), TaskId(0)] }]).await?;
    let answer: Vec<ToPeer> = receive(&mut connection).await?;
    let [ToPeer::Data { request: 3, data }] = &answer[..] else { return Err("a strange answer".into()) };
    assert!(data.len() == 2 && data.iter().all(Option::is_none));
    Ok(())
}
