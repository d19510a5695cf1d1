//! An S3 server in this process, on a port of its own: it checks signatures and conditions, remembers requests, and fails on demand.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, HOST, HeaderMap, IF_NONE_MATCH, RANGE};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use s3s::auth::SimpleAuth;
use s3s::host::{S3Host, VirtualHost};
use s3s::service::{S3Service, S3ServiceBuilder};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, JoinSet};

use crate::gcs;
use crate::host::{Host, files_below};
use crate::port::Port;
use crate::sts::{SESSION_ACCESS_KEY, SESSION_SECRET_KEY, SESSION_TOKEN};
use crate::uploads::{self, ListUploads};

mod client;
mod faults;

pub use client::{ask, ask_with, make_bucket, serve_at};
pub use faults::{Fault, Rule};
use faults::{corrupted, reset, slow, truncated};

/// The bucket that every server begins with.
pub const BUCKET: &str = "backups";
/// Who may use it.
pub const ACCESS_KEY: &str = "AKIDEXAMPLE";
/// The secret of [`ACCESS_KEY`].
pub const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
/// With this domain as proxied host, the bucket stands before it: `backups.s3.test`.
pub const DOMAIN: &str = "s3.test";

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A running server with one empty bucket.
#[derive(Debug)]
pub struct S3 {
    port: Port,
    root: TempDir,
    shared: Arc<Shared>,
    service: S3Service,
    accepting: Mutex<Option<JoinHandle<()>>>,
    runtime: Option<Runtime>,
}

#[derive(Debug, Default)]
struct Shared {
    rules: Mutex<Vec<Rule>>,
    requests: Mutex<Vec<Recorded>>,
    reading: AtomicUsize,
    reading_max: AtomicUsize,
    root: PathBuf,
    /// Requests are Google's.
    google: bool,
    demands_checksums: AtomicBool,
    /// The store beneath looks first and writes then; with this in between, of two creators one wins.
    creating: tokio::sync::Mutex<()>,
    /// Held by a request that is throttled.
    throttled: tokio::sync::Mutex<()>,
}

/// A request that came, whatever became of it.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// `PUT`, …
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Bytes of its body.
    pub len: u64,
    /// All of its headers.
    pub headers: HeaderMap,
}

impl Recorded {
    /// Whether it asks for a part of an object.
    pub fn is_ranged(&self) -> bool {
        self.method == "GET" && self.headers.contains_key(RANGE)
    }

    /// Whether it brings a part of a multipart upload.
    pub fn is_part(&self) -> bool {
        self.method == "PUT" && self.target.contains("partNumber=")
    }
}

impl S3 {
    /// Starts a server.
    pub fn start() -> Self {
        Self::with(false)
    }

    /// A server that is spoken to as [`gcs`](crate::gcs) translates it. It asks for no signature.
    pub(crate) fn for_google() -> Self {
        Self::with(true)
    }

    fn with(google: bool) -> Self {
        let root = tempfile::Builder::new().prefix("backup-test-s3.").tempdir().expect("a temporary directory");
        std::fs::create_dir(root.path().join(BUCKET)).expect("a bucket");
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).expect("a directory to serve"));
        let mut auth = SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY);
        auth.register(SESSION_ACCESS_KEY.into(), SESSION_SECRET_KEY.into());
        if !google {
            service.set_auth(auth);
        }
        service.set_host(BucketInHost);
        service.set_route(ListUploads { root: root.path().to_owned(), google });
        let (service, shared) =
            (service.build(), Arc::new(Shared { root: root.path().to_owned(), google, ..Shared::default() }));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let port = Port::take();
        let server = Self { port, root, shared, service, accepting: Mutex::new(None), runtime: Some(runtime) };
        server.resume();
        server
    }

    fn accept(&self, listener: std::net::TcpListener) {
        listener.set_nonblocking(true).expect("sockets can be");
        let accepting = accept(listener, self.service.clone(), Arc::clone(&self.shared));
        *lock(&self.accepting) = self.runtime.as_ref().map(|runtime| runtime.spawn(accepting));
    }

    /// Stops listening and closes all connections; what is stored stays.
    ///
    /// # Panics
    /// When it does not listen.
    pub fn stop(&self) {
        lock(&self.accepting).take().expect("it listens").abort();
        // The socket closes when its task has ended.
        while std::net::TcpStream::connect(self.address()).is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Listens again, at the same address.
    ///
    /// # Panics
    /// When that is taken.
    pub fn resume(&self) {
        self.accept(std::net::TcpListener::bind(self.address()).expect("its own port"));
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Makes `host` a client, with credentials, and its repository a prefix of the bucket.
    pub fn serve(&self, host: &mut Host) {
        serve_at(&self.endpoint(), BUCKET, host);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// The keys of all objects but the records of runs.
    pub fn objects(&self) -> Vec<String> {
        let all = files_below(&self.root.path().join(BUCKET)).into_iter();
        all.filter(|key| !key.split('/').any(|folder| folder == "runs")).collect()
    }

    /// An object's contents.
    pub fn object(&self, key: &str) -> Vec<u8> {
        std::fs::read(self.root.path().join(BUCKET).join(key)).expect("an object")
    }

    /// The file that holds an object.
    pub fn path(&self, key: &str) -> PathBuf {
        self.root.path().join(BUCKET).join(key)
    }

    /// What is left of multipart uploads that were neither completed nor aborted.
    pub fn unfinished(&self) -> Vec<String> {
        files_below(self.root.path()).into_iter().filter(|name| name.starts_with(".upload")).collect()
    }

    /// The objects that these uploads would become.
    pub fn uploads(&self) -> Vec<String> {
        uploads::keys(self.root.path())
    }

    /// Makes them all as old as if they had been begun then.
    pub fn age_uploads(&self, begun: SystemTime) {
        uploads::age(self.root.path(), begun);
    }

    /// All requests since the start or the last call.
    pub fn take_requests(&self) -> Vec<Recorded> {
        std::mem::take(&mut *lock(&self.shared.requests))
    }

    /// Whether there was such a request since the start or the last [`take_requests`](Self::take_requests).
    pub fn was_asked(&self, is_it: impl Fn(&Recorded) -> bool) -> bool {
        lock(&self.shared.requests).iter().any(is_it)
    }

    /// The most requests that read an object at once.
    pub fn reading_max(&self) -> usize {
        self.shared.reading_max.load(Ordering::Relaxed)
    }

    /// From now on, requests go wrong as `rule` says. Of several rules the first that fits counts.
    pub fn inject(&self, rule: Rule) {
        lock(&self.shared.rules).push(rule);
    }

    /// Whether any rule has struck.
    pub fn has_struck(&self) -> bool {
        lock(&self.shared.rules).iter().any(|rule| rule.struck > 0)
    }

    /// From now on, as AWS does it where a bucket has a default retention, no object is taken without its checksum.
    pub fn demand_checksums(&self) {
        self.shared.demands_checksums.store(true, Ordering::Relaxed);
    }

    /// All goes well again; not every rule must have struck.
    pub fn mend(&self) {
        lock(&self.shared.rules).clear();
    }

    /// All goes well again.
    ///
    /// # Panics
    /// When a rule has not struck as often as it should have, or never: the test would prove nothing.
    pub fn heal(&self) {
        for rule in std::mem::take(&mut *lock(&self.shared.rules)) {
            assert!(rule.struck > 0 && (rule.times == 0 || rule.times > usize::MAX / 2), "{rule:?}");
        }
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Tests may be async, where waiting for it would panic.
            runtime.shutdown_background();
        }
    }
}

/// The bucket in the path, unless the host is below [`DOMAIN`].
struct BucketInHost;

impl S3Host for BucketInHost {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> s3s::S3Result<VirtualHost<'a>> {
        let bucket = host.strip_suffix(DOMAIN).and_then(|rest| rest.strip_suffix('.'));
        Ok(match bucket {
            Some(bucket) => VirtualHost::new(DOMAIN).with_bucket(bucket),
            None => VirtualHost::new(host),
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics with it")
}

async fn accept(listener: std::net::TcpListener, service: S3Service, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).expect("a listening socket");
    // They end when this does.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve(stream, service.clone(), Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, service: S3Service, shared: Arc<Shared>) {
    // A second handle, to say how the connection is to be closed.
    let Ok(socket) = stream.as_fd().try_clone_to_owned() else { return };
    let socket = Arc::new(socket);
    let answer = service_fn(move |request| {
        let (service, shared, socket) = (service.clone(), Arc::clone(&shared), Arc::clone(&socket));
        async move { shared.answer(request, service, &socket).await }
    });
    // Fails with every fault that breaks the connection.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

impl Shared {
    async fn answer(
        self: &Arc<Self>,
        mut request: Request<Incoming>,
        service: S3Service,
        socket: &OwnedFd,
    ) -> io::Result<Response<Body>> {
        let recorded = record(&request);
        let fault = lock(&self.rules).iter_mut().find_map(|rule| rule.strikes(&recorded).then_some(rule.fault));
        let (ranged, len) = (recorded.is_ranged(), recorded.len);
        lock(&self.requests).push(recorded);
        match fault {
            Some(Fault::Reset) => return Err(reset(socket)),
            Some(Fault::Status(status)) => {
                // Else the client finds its connection closed while it is still sending.
                request.into_body().collect().await.map_err(io::Error::other)?;
                return Response::builder().status(status).body(whole(Bytes::new())).map_err(io::Error::other);
            }
            Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
            Some(Fault::Throttle(rate)) => {
                let _turn = self.throttled.lock().await;
                tokio::time::sleep(Duration::from_millis(len * 1000 / rate.max(1))).await;
            }
            _ => {}
        }
        // The signature covers the token, and the store beneath does not ask for it.
        if uses_session(request.headers())
            && request.headers().get("x-amz-security-token").is_none_or(|t| t != SESSION_TOKEN)
        {
            return refused(403, "InvalidToken", "The session token is missing or wrong");
        }
        if self.google
            && let Err((status, code, why)) = gcs::into_s3(&mut request)
        {
            request.into_body().collect().await.map_err(io::Error::other)?;
            return refused(status, code, why);
        }
        if self.demands_checksums.load(Ordering::Relaxed) && is_put_without_checksum(&request) {
            request.into_body().collect().await.map_err(io::Error::other)?;
            let why = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters";
            return refused(400, "InvalidRequest", why);
        }
        // The store beneath would make the bucket.
        if !self.root.join(bucket_of(&request)).is_dir() {
            return refused(404, "NoSuchBucket", "The bucket does not exist");
        }
        let creates = request.headers().contains_key(IF_NONE_MATCH);
        let _creating = if creates { Some(self.creating.lock().await) } else { None };
        let reading = ranged.then(|| Reading::begin(self));
        if matches!(fault, Some(Fault::IgnoreCondition)) {
            // The condition is signed and cannot be taken out of the request, but it can be met.
            let _ = std::fs::remove_file(self.root.join(request.uri().path().trim_start_matches('/')));
        }
        let mut response = perform(&service, request).await?;
        if self.google {
            gcs::from_s3(&mut response);
        }
        if let Some(reading) = reading {
            // Until its last byte was taken.
            response = response.map(|body| {
                let counted = body.map_frame(move |frame| {
                    let _ = &reading;
                    frame
                });
                counted.boxed_unsync()
            });
        }
        match fault {
            Some(Fault::LoseAnswer) => Err(reset(socket)),
            Some(Fault::AnswerLate(time)) => {
                tokio::time::sleep(time).await;
                Ok(response)
            }
            Some(Fault::Truncate) => truncated(response).await,
            Some(Fault::Corrupt) => corrupted(response).await,
            Some(Fault::Slow(time)) => slow(response, time).await,
            _ => Ok(response),
        }
    }
}

fn is_put_without_checksum<B>(request: &Request<B>) -> bool {
    let is_checksum = |name: &str| name == "content-md5" || name.starts_with("x-amz-checksum-");
    request.method() == "PUT" && !request.headers().keys().any(|name| is_checksum(name.as_str()))
}

fn refused(status: u16, code: &str, why: &str) -> io::Result<Response<Body>> {
    let body = format!("<Error><Code>{code}</Code><Message>{why}</Message></Error>");
    Response::builder().status(status).body(whole(body.into())).map_err(io::Error::other)
}

/// Whether a request is signed with the session's key.
fn uses_session(headers: &HeaderMap) -> bool {
    let authorization = headers.get("authorization").and_then(|value| value.to_str().ok());
    authorization.is_some_and(|value| value.contains(SESSION_ACCESS_KEY))
}

/// Counts a request among those that are being served.
struct Reading(Arc<Shared>);

impl Reading {
    fn begin(shared: &Arc<Shared>) -> Self {
        let now = shared.reading.fetch_add(1, Ordering::Relaxed) + 1;
        shared.reading_max.fetch_max(now, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.reading.fetch_sub(1, Ordering::Relaxed);
    }
}

fn bucket_of(request: &Request<Incoming>) -> &str {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let in_path = || request.uri().path().trim_start_matches('/').split('/').next().unwrap_or_default();
    host.strip_suffix(DOMAIN).map_or_else(in_path, |bucket| bucket.trim_end_matches('.'))
}

fn record(request: &Request<Incoming>) -> Recorded {
    let len = request.headers().get(CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse().ok());
    Recorded {
        method: request.method().to_string(),
        target: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
        len: len.unwrap_or(0),
        headers: request.headers().clone(),
    }
}

async fn perform(service: &S3Service, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let response = service.call(request.map(s3s::Body::from)).await.map_err(io::Error::other)?;
    Ok(response.map(|body| BodyExt::map_err(body, io::Error::other).boxed_unsync()))
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}
