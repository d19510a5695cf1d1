//! s3rver: a store that lies. It replaces objects when asked not to.

use std::net::SocketAddr;
use std::path::Path;

use crate::host::Host;
use crate::process::{Program, npm};
use crate::s3::BUCKET;

/// Its only key, and the secret of it.
const KEY: &str = "S3RVER";

/// A running server with one empty bucket.
#[derive(Debug)]
pub struct S3rver {
    address: SocketAddr,
    _program: Program,
}

impl S3rver {
    /// Starts one.
    ///
    /// # Panics
    /// When it is not installed.
    pub fn start() -> Self {
        let program = Program::start(Path::new("node"), |_| {
            let script = npm("s3rver/bin/s3rver.js").display().to_string();
            let arguments = ["--directory", "data", "--address", "127.0.0.1", "--port", "0", "--no-vhost-buckets"];
            let mut all = vec![script];
            all.extend(arguments.map(str::to_owned));
            all.extend(["--configure-bucket", BUCKET].map(str::to_owned));
            all
        });
        let address = program.until_listening("listening on ");
        Self { address, _program: program }
    }

    /// Makes `host` a client, with credentials, and its repository a prefix of the bucket.
    pub fn serve(&self, host: &mut Host) {
        crate::s3::serve_at(&format!("http://{}", self.address), BUCKET, host);
        host.set("AWS_ACCESS_KEY_ID", KEY);
        host.set("AWS_SECRET_ACCESS_KEY", KEY);
    }
}
