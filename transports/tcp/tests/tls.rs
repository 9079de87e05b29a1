//! Connections over TLS: the whole suite, and who is refused.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use rankine_transport::{Error, Transport};
use rankine_transport_tcp::{Tcp, Tls};
use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::time::timeout;

rankine_transport::conformance_suite!(tcp("localhost"), "tcp://127.0.0.1:0");

/// An authority and certificates that it signed, as files.
struct Files {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
    _root: Certificate,
}

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        fs::write(directory.path().join("ca.pem"), root.pem()).unwrap();
        let files = Self { directory, issuer: Issuer::new(params, key), _root: root };
        files.sign("localhost", &["localhost", "127.0.0.1"]);
        files.sign("elsewhere", &["elsewhere.example"]);
        files
    }

    fn sign(&self, file: &str, names: &[&str]) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names.iter().map(|n| n.to_string()).collect::<Vec<_>>()).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{file}.pem")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{file}.key")), key.serialize_pem()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn tls(&self, name: &str) -> Tls {
        let (certificate, key) = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        Tls::from_files(&certificate, &key, &self.path("ca.pem")).unwrap()
    }
}

/// `localhost` and `elsewhere`, of one authority, whose files are gone once they are read.
static SIDES: LazyLock<[Tls; 2]> = LazyLock::new(|| {
    let files = Files::new();
    ["localhost", "elsewhere"].map(|name| files.tls(name))
});

fn tcp(certificate: &str) -> Tcp {
    let [localhost, elsewhere] = &*SIDES;
    Tcp::default().tls(if certificate == "localhost" { localhost } else { elsewhere }.clone())
}

/// What both sides say of a connection from one to the other.
async fn meet(listening: &Tcp, connecting: &Tcp) -> (Option<Error>, Option<Error>) {
    let mut listener = listening.listen(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let at = listener.address().clone();
    let connect = async {
        // With TLS 1.3 a client hears only at its first read that its certificate was refused.
        match connecting.connect(&at).await {
            Ok(mut connection) => {
                let _ = connection.sender.send(rankine_transport::Message::new(vec![1; 20], vec![])).await;
                timeout(Duration::from_secs(2), connection.receiver.recv()).await.ok()?.err()
            }
            Err(error) => Some(error),
        }
    };
    let accept =
        async { timeout(Duration::from_secs(15), listener.accept()).await.expect("in bounded time").err() };
    tokio::join!(accept, connect)
}

#[tokio::test]
async fn a_name_that_the_certificate_does_not_bear_is_refused() {
    let (_, error) = meet(&tcp("elsewhere"), &tcp("localhost")).await;
    let text = error.expect("refused").to_string();
    assert!(text.contains("no TLS connection with tcp://127.0.0.1") && text.contains("--tls-ca"), "{text}");
    assert!(text.contains("not valid for name") && text.contains("elsewhere.example"), "{text}");
}

#[tokio::test]
async fn what_another_authority_signed_is_refused_on_either_side() {
    let others = Files::new();
    let other = Tcp::default().tls(others.tls("localhost"));
    let (_, error) = meet(&other, &tcp("localhost")).await;
    let text = error.expect("refused").to_string();
    assert!(text.contains("no TLS connection") && text.contains("certificate"), "{text}");
    let (error, _) = meet(&tcp("localhost"), &other).await;
    assert!(error.expect("refused").to_string().contains("no TLS connection"));
}

#[tokio::test]
async fn who_speaks_no_tls_is_refused() {
    let (error, gone) = meet(&tcp("localhost"), &Tcp::default()).await;
    let text = error.expect("refused").to_string();
    assert!(text.contains("no TLS connection") && text.contains("both sides need TLS on"), "{text}");
    assert!(gone.is_some(), "and hears that");
}

#[tokio::test]
async fn one_who_is_silent_holds_up_nobody_else() {
    let tcp = tcp("localhost");
    let mut listener = tcp.listen(&"tcp://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let at = listener.address().clone();
    let _silent = std::net::TcpStream::connect(at.place()).unwrap();
    let both = async { tokio::join!(listener.accept(), tcp.connect(&at)) };
    let (theirs, ours) = timeout(Duration::from_secs(5), both).await.expect("nobody waits for the silent");
    assert!(theirs.is_ok() && ours.is_ok());
    let silent = timeout(Duration::from_secs(15), listener.accept()).await.expect("in bounded time");
    assert!(silent.unwrap_err().to_string().contains("within 10s"));
}

#[test]
fn files_that_are_not_right_are_named() {
    let files = Files::new();
    let (certificate, key, ca) =
        (files.path("localhost.pem"), files.path("localhost.key"), files.path("ca.pem"));
    let text = |certificate: &Path, key: &Path, ca: &Path| {
        Tls::from_files(certificate, key, ca).unwrap_err().to_string()
    };
    let missing = text(Path::new("/nowhere.pem"), &key, &ca);
    assert!(missing.contains("cannot use /nowhere.pem as this side's certificate"), "{missing}");
    let empty = text(&certificate, &key, &key);
    assert!(empty.contains("localhost.key") && empty.contains("no certificate in PEM form"), "{empty}");
    let mixed = text(&certificate, &files.path("elsewhere.key"), &ca);
    assert!(mixed.contains("elsewhere.key as the private key"), "{mixed}");
}
