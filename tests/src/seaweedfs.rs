//! SeaweedFS: an S3 server that shares no code with us or with the one in this process. It checks signatures and honours conditions.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use crate::host::Host;
use crate::port::Port;
use crate::process::Program;
use crate::s3::{ACCESS_KEY, BUCKET, SECRET_KEY, ask_with, make_bucket};

/// Who may use it, in the words of its configuration.
const IDENTITIES: &str = r#"{"identities": [{"name": "backup", "actions": ["Admin", "Read", "Write", "List", "Tagging"],
  "credentials": [{"accessKey": "ACCESS", "secretKey": "SECRET"}]}]}"#;

/// A running server with one empty bucket.
#[derive(Debug)]
pub struct SeaweedFs {
    address: SocketAddr,
    _program: Program,
    _ports: [Port; 8],
}

impl SeaweedFs {
    /// Starts one.
    ///
    /// # Panics
    /// When it is not installed.
    pub fn start() -> Self {
        let weed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/venv/bin/weed");
        let ports = [(); 8].map(|()| Port::take());
        let [master, volume, filer, s3, master_grpc, volume_grpc, filer_grpc, s3_grpc] =
            ports.each_ref().map(Port::number);
        let program = Program::start(&weed, |home| {
            let identities = IDENTITIES.replace("ACCESS", ACCESS_KEY).replace("SECRET", SECRET_KEY);
            fs::write(home.join("s3.json"), identities).expect("a file");
            fs::create_dir(home.join("data")).expect("a directory");
            let mut arguments = ["server", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
                .map(str::to_owned)
                .to_vec();
            let listening = [
                ("master.port", master),
                ("master.port.grpc", master_grpc),
                ("volume.port", volume),
                ("volume.port.grpc", volume_grpc),
                ("filer.port", filer),
                ("filer.port.grpc", filer_grpc),
                ("s3.port", s3),
                ("s3.port.grpc", s3_grpc),
                // Of no use here, and of fixed ports otherwise.
                ("s3.port.iceberg", 0),
                ("s3.port.lance", 0),
            ];
            arguments.extend(listening.map(|(name, port)| format!("-{name}={port}")));
            arguments.extend(
                [
                    "-s3.config=s3.json",
                    // In /tmp, where they would stay, otherwise.
                    "-filer.localSocket=filer.sock",
                    "-s3.localSocket=s3.sock",
                    "-volume.max=100",
                    "-master.volumeSizeLimitMB=64",
                    "-master.telemetry=false",
                    "-volume.preStopSeconds=0",
                ]
                .map(str::to_owned),
            );
            arguments
        });
        let address = SocketAddr::from(([127, 0, 0, 1], s3));
        // It listens before it can keep anything.
        program.until(|_| make_bucket(address, BUCKET).then_some(()));
        Self { address, _program: program, _ports: ports }
    }

    /// Makes a bucket in which all that is stored can be removed by nobody for a day.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn make_locked_bucket(&self, name: &str) {
        let rule = "<DefaultRetention><Mode>COMPLIANCE</Mode><Days>1</Days></DefaultRetention>";
        let rule = format!(
            "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule>{rule}</Rule></ObjectLockConfiguration>"
        );
        let lock = [("x-amz-bucket-object-lock-enabled", "true")];
        for (target, headers, body) in
            [(format!("/{name}"), &lock[..], ""), (format!("/{name}?object-lock="), &[], rule.as_str())]
        {
            let answer = ask_with(self.address, "PUT", &target, headers, body).expect("it answers");
            assert!(answer.starts_with("HTTP/1.1 200"), "{target}: {answer}");
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes `host` a client, with credentials, and its repository a prefix of the bucket.
    pub fn serve(&self, host: &mut Host) {
        crate::s3::serve_at(&self.endpoint(), BUCKET, host);
    }
}
