//! TLS: who may talk is told by certificates that one authority signed, on both sides.

use std::{fmt, io, path::Path, sync::Arc, time::Duration};

use rankine_transport::{Address, Error, Result};
use tokio::{net::TcpStream, time};
use tokio_rustls::{
    TlsAcceptor, TlsConnector, TlsStream,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};

/// A peer that says nothing is given this long.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The certificate by which this process is known, and the authority that it believes.
#[derive(Clone)]
pub struct Tls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(..)")
    }
}

fn unusable(file: &Path, what: &str, reason: impl fmt::Display) -> Error {
    let attempt = format!("use {} as {what} for TLS", file.display());
    Error::Setup { attempt, reason: reason.to_string() }
}

impl Tls {
    /// From PEM files: this process's chain of certificates, its key, and the authority's certificates.
    ///
    /// # Errors
    /// If one of them cannot be read, or key and certificate do not belong together.
    pub fn from_files(certificate: &Path, key: &Path, authority: &Path) -> Result<Self> {
        let certificates = |file: &Path, what| -> Result<Vec<CertificateDer<'static>>> {
            let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            match read {
                Ok(found) if found.is_empty() => {
                    Err(unusable(file, what, "it holds no certificate in PEM form"))
                }
                Ok(found) => Ok(found),
                Err(error) => Err(unusable(file, what, error)),
            }
        };
        let chain = certificates(certificate, "this side's certificate")?;
        let private = PrivateKeyDer::from_pem_file(key).map_err(|e| unusable(key, "the private key", e))?;
        let authority_is = "the authority's certificate";
        let mut roots = RootCertStore::empty();
        for root in certificates(authority, authority_is)? {
            roots.add(root).map_err(|e| unusable(authority, authority_is, e))?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(ring::default_provider());
        let mismatch = |error: tokio_rustls::rustls::Error| unusable(key, "the private key", error);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| unusable(authority, authority_is, e))?;
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(mismatch)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain.clone(), private.clone_key())
            .map_err(mismatch)?;
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(mismatch)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, private)
            .map_err(mismatch)?;
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }

    pub(crate) async fn connect(&self, stream: TcpStream, peer: &Address) -> Result<TlsStream<TcpStream>> {
        let host = peer.place().rsplit_once(':').map_or(peer.place(), |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(|error| failed(peer, error))?;
        let handshake = TlsConnector::from(self.client.clone()).connect(name, stream);
        in_time(peer, handshake).await.map(TlsStream::from)
    }

    pub(crate) async fn accept(&self, stream: TcpStream, peer: &Address) -> Result<TlsStream<TcpStream>> {
        let handshake = TlsAcceptor::from(self.server.clone()).accept(stream);
        in_time(peer, handshake).await.map(TlsStream::from)
    }
}

fn failed(peer: &Address, reason: impl fmt::Display) -> Error {
    Error::Tls { peer: peer.clone(), reason: reason.to_string() }
}

async fn in_time<T>(peer: &Address, handshake: impl Future<Output = io::Result<T>>) -> Result<T> {
    match time::timeout(TIMEOUT, handshake).await {
        Ok(shaken) => shaken.map_err(|error| failed(peer, error)),
        Err(_) => Err(failed(peer, format_args!("it did not finish the handshake within {TIMEOUT:?}"))),
    }
}
