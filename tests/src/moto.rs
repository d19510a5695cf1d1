//! moto, which plays services of AWS: KMS, and an S3 that knows what AWS's own does about encryption and classes, and checks no signature.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;

use crate::decoder::interpreter;
use crate::host::Host;
use crate::s3::BUCKET;

/// Ends with its standard input: also when the test that started it is killed.
const MOTO: &str = "\
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
from moto.server import main
main(['-p', '0'])";

/// A running moto. Dropping it ends it.
#[derive(Debug)]
pub struct Moto {
    address: SocketAddr,
    process: Child,
}

impl Moto {
    /// Starts one, empty.
    ///
    /// # Panics
    /// When it is not installed.
    pub fn start() -> Self {
        let mut process = Command::new(interpreter())
            .args(["-c", MOTO])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("no python3; run: scripts/install-deps test");
        let address = address_of(&mut process);
        Self { address, process }
    }

    /// Starts one with a bucket.
    pub fn with_bucket() -> Self {
        let moto = Self::start();
        assert!(crate::s3::make_bucket(moto.address, BUCKET), "moto makes no bucket");
        moto
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes `host` a client of its S3, with credentials, and its repository a prefix of the bucket.
    pub fn serve(&self, host: &mut Host) {
        crate::s3::serve_at(&self.endpoint(), BUCKET, host);
    }

    /// Asks it over HTTP, unsigned; all that it answers, its body cut to text.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn ask(&self, method: &str, target: &str, headers: &str, body: &str) -> String {
        let len = body.len();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {len}\r\n{headers}\r\n{body}",
            self.address
        );
        let mut stream = TcpStream::connect(self.address).expect("moto listens");
        stream.write_all(request.as_bytes()).expect("it can be asked");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("it answers");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits until moto says where it listens, and goes on reading what it says: it would stop when the pipe is full.
fn address_of(moto: &mut Child) -> SocketAddr {
    let mut said = BufReader::new(moto.stderr.take().expect("it is piped"));
    let mut all = String::new();
    loop {
        let mut line = String::new();
        let len = said.read_line(&mut line).expect("it is text");
        assert!(len > 0, "moto does not start; run: scripts/install-deps test\n{all}");
        if let Some((_, address)) = line.split_once("Running on http://") {
            let address = address.trim().parse().expect("an address");
            thread::spawn(move || io::copy(&mut said, &mut io::sink()));
            return address;
        }
        all.push_str(&line);
    }
}
