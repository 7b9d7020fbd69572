//! Connections: plain or TLS, as many as are allowed, until the service stops.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{Limits, set};
use crate::error::{At, Error, Result};
use crate::observer;

/// Within which a client has to send the head of a request, or shake hands.
const HEAD: Duration = Duration::from_secs(10);
/// What is waited for after an error of the system, such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);
/// Within which requests that have begun must end when the service stops.
const DRAIN: Duration = Duration::from_secs(30);

/// Where connections come in.
pub struct Listener {
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
}

impl Listener {
    /// Takes an address; with certificate chain and key in PEM it speaks TLS.
    ///
    /// # Errors
    /// The address is taken, or the files hold no certificate and key that belong together.
    pub async fn bind(address: SocketAddr, tls: Option<&[PathBuf; 2]>) -> Result<Self> {
        let tls = tls.map(acceptor).transpose()?;
        let socket = TcpListener::bind(address).await;
        let socket = socket.map_err(|error| Error::new(format!("--listen {address}: {error}")))?;
        Ok(Self { socket, tls })
    }

    /// For people: the port that was chosen where 0 was asked for.
    pub fn address(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        self.socket
            .local_addr()
            .map_or_else(|_| scheme.to_string(), |address| format!("{scheme}://{address}"))
    }

    /// Answers until `stop` is set; then no connection is taken, and requests that have begun are answered.
    pub async fn serve(self, router: Router, limits: &Limits, stop: &'static AtomicBool) {
        let graceful = GracefulShutdown::new();
        let places = Arc::new(Semaphore::new(limits.connections));
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(HEAD);
        loop {
            let connection = async {
                let place = places.clone().acquire_owned().await;
                (place, self.socket.accept().await)
            };
            let (place, accepted) = tokio::select! {
                taken = connection => taken,
                () = set(stop) => break,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let _ = stream.set_nodelay(true);
            let (server, service) = (server.clone(), TowerToHyperService::new(router.clone()));
            let watcher = graceful.watcher();
            let tls = self.tls.clone();
            tokio::spawn(async move {
                // What goes wrong with a connection concerns its client alone.
                match tls {
                    None => {
                        let connection = server.serve_connection(TokioIo::new(stream), service);
                        let _ = watcher.watch(connection).await;
                    }
                    Some(tls) => {
                        let Some(stream) = shaken(tls, stream).await else { return };
                        let connection = server.serve_connection(TokioIo::new(stream), service);
                        let _ = watcher.watch(connection).await;
                    }
                }
                drop(place);
            });
        }
        drop(self.socket);
        if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
            observer::warn("requests that had begun were cut off".to_string());
        }
    }
}

async fn shaken(tls: TlsAcceptor, stream: TcpStream) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    tokio::time::timeout(HEAD, tls.accept(stream)).await.ok()?.ok()
}

fn acceptor([certificates, key]: &[PathBuf; 2]) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(certificates)
        .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    let chain = chain.at("read", certificates)?;
    if chain.is_empty() {
        return Err(Error::new(format!(
            "--tls-cert {}: holds no certificate in PEM",
            certificates.display()
        )));
    }
    let key = PrivateKeyDer::from_pem_file(key).at("read", key)?;
    let wrong = |error| Error::new(format!("--tls-cert, --tls-key: {error}"));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(wrong)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(wrong)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
