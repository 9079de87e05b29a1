//! The registry: which transport an address is for, and what is said where there is none.

use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use rankine_transport::{Address, Connection, Error, Listener, Registry, Result, Transport};
use rankine_transport_tcp::Tcp;

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_scheme_that_is_not_there_is_named_with_what_would_bring_it() {
    let registry = Registry::new().with(Tcp::default());
    let error = registry.connect(&address("mpi://1")).await.unwrap_err().to_string();
    assert!(error.contains("no transport for mpi://1: this program has tcp://"), "{error}");
    assert!(error.contains("cargo feature `mpi`"), "{error}");
    assert!(registry.listen(&address("smoke://*")).await.is_err());
    assert!(registry.only(&["tcp", "verbs"]).is_err());
}

/// A transport of which nothing is known but its name, and whether it reaches anybody.
struct Named(&'static str, bool);

impl Transport for Named {
    fn scheme(&self) -> &'static str {
        self.0
    }
    fn listen<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Box<dyn Listener>>> {
        Box::pin(async { Err(Error::Unavailable { address: address.clone(), reason: "a name".into() }) })
    }
    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, Result<Connection>> {
        Box::pin(async { Err(Error::Unavailable { address: address.clone(), reason: "a name".into() }) })
    }
    fn survey(&self) -> Result<Vec<String>, String> {
        Err("a name".into())
    }
    fn reaches(&self, _: &Address) -> bool {
        self.1
    }
}

/// On another host neither this process nor its memory is within reach.
#[test]
fn what_is_out_of_reach_leaves_the_next_best() {
    let all = ["tcp://a:1", "verbs://a:2", "inproc://3", "mpi://4", "shm://a/5"].map(address);
    let [tcp, verbs, inproc, mpi, shm] = &all;
    for (here, expected) in [(true, &[inproc, shm, verbs, mpi, tcp][..]), (false, &[verbs, mpi, tcp])] {
        let beyond = ["verbs", "mpi", "tcp"].into_iter().map(|scheme| Named(scheme, true));
        let registry = Registry::new().with(Named("inproc", here)).with(Named("shm", here));
        let registry = beyond.fold(registry, Registry::with);
        assert_eq!(registry.within_reach(&all), expected);
    }
}

/// One that neither takes nor refuses: a listener whose queue is full drops what comes.
#[tokio::test]
async fn a_peer_that_does_not_answer_is_given_up() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(1).unwrap();
    let place = full.local_addr().unwrap();
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let stream = std::net::TcpStream::connect_timeout(&place, Duration::from_millis(100));
        waiting.extend(stream.ok());
    }
    let registry = Registry::new().with(Tcp::default()).patience(Duration::from_millis(500));
    let start = Instant::now();
    let error = registry.connect(&Address::new("tcp", place)).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(
        matches!(error, Error::Connect { .. }) && error.to_string().contains("no answer in 500ms"),
        "{error}"
    );
}

#[tokio::test]
async fn the_preferred_address_within_reach_comes_first() {
    let registry = Registry::new().with(Tcp::default());
    let all = [address("mpi://1"), address("tcp://a:1"), address("tcp://b:1")];
    assert_eq!(registry.within_reach(&all), [&all[1], &all[2]]);
    assert!(registry.unreachable(&all[0]).to_string().contains("no transport for mpi://1"));
    assert!(registry.unreachable(&all[1]).to_string().contains("not within reach"));
}
