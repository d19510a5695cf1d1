//! AWS KMS: moto, which decrypts only with the right key and encryption context, behind a door that remembers requests and fails on demand.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use serde_json::{Value, json};

use crate::host::Host;
use crate::moto::Moto;

/// The account of all keys.
pub const ACCOUNT: &str = "123456789012";
/// The secret key that hosts sign with.
pub const SECRET_KEY: &str = "kms/wJalrXUtnFEMI/K7MDENG+bPxRfiCYSECRET";
/// The token of their session.
pub const SESSION_TOKEN: &str = "IQoJb3JpZ2luX2VjEExampleSessionToken";

/// A running KMS. Dropping it ends it.
#[derive(Debug)]
pub struct Kms {
    address: SocketAddr,
    moto: Moto,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    requests: Vec<Asked>,
    rules: Vec<Rule>,
}

/// A request that came, whatever became of it.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `Encrypt`, …
    pub action: String,
    /// The JSON that came with it.
    pub body: Value,
    /// The region it was signed for.
    pub region: String,
}

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// It is refused with this status and code.
    Refuse(u16, &'static str),
    /// The connection is closed without an answer.
    HangUp,
}

#[derive(Debug)]
struct Rule {
    action: &'static str,
    fault: Fault,
    times: usize,
}

impl Kms {
    /// Starts one, without keys.
    ///
    /// # Panics
    /// When moto is not installed.
    pub fn start() -> Self {
        let moto = Moto::start();
        let emulator = moto.address();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::<Mutex<Shared>>::default();
        let door = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let door = Arc::clone(&door);
                // Who hangs up in the middle is no concern of ours.
                thread::spawn(move || drop(serve(client, emulator, &door)));
            }
        });
        Self { address, moto, shared }
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes `host` a client with credentials.
    pub fn serve(&self, host: &mut Host) {
        host.set("AWS_ENDPOINT_URL_KMS", self.endpoint());
        host.set("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE");
        host.set("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        host.set("AWS_SESSION_TOKEN", SESSION_TOKEN);
    }

    /// Makes a key in `region`; its name as a recipient.
    pub fn key(&self, region: &str) -> String {
        arn(&self.call(region, "CreateKey", &json!({})))
    }

    /// Makes a multi-Region key in `regions`; its names there.
    pub fn multi_region_key(&self, regions: [&str; 2]) -> [String; 2] {
        let primary = self.call(regions[0], "CreateKey", &json!({ "MultiRegion": true }));
        let key_id = &primary["KeyMetadata"]["KeyId"];
        self.call(regions[0], "ReplicateKey", &json!({ "KeyId": key_id, "ReplicaRegion": regions[1] }));
        regions.map(|region| arn(&self.call(region, "DescribeKey", &json!({ "KeyId": key_id }))))
    }

    /// Makes an alias of a key, or moves it there; its name as a recipient.
    pub fn alias(&self, region: &str, alias: &str, key: &str) -> String {
        let body = json!({ "AliasName": format!("alias/{alias}"), "TargetKeyId": key.trim_start_matches("kms:") });
        self.call(region, "DeleteAlias", &json!({ "AliasName": format!("alias/{alias}") }));
        self.call(region, "CreateAlias", &body);
        format!("kms:arn:aws:kms:{region}:{ACCOUNT}:alias/{alias}")
    }

    /// Asks the emulator itself.
    pub fn call(&self, region: &str, action: &str, body: &Value) -> Value {
        let body = body.to_string();
        let signed = format!(
            "AWS4-HMAC-SHA256 Credential=AKID/20261122/{region}/kms/aws4_request, SignedHeaders=host, Signature=0"
        );
        let headers = format!(
            "X-Amz-Target: TrentService.{action}\r\nAuthorization: {signed}\r\nContent-Type: application/x-amz-json-1.1\r\n"
        );
        let answer = self.moto.ask("POST", "/", &headers, &body);
        let (_, body) = answer.split_once("\r\n\r\n").expect("it answers in HTTP");
        serde_json::from_str(body).unwrap_or(Value::Null)
    }

    /// The next `times` requests for `action` go wrong.
    pub fn fail(&self, action: &'static str, fault: Fault, times: usize) {
        self.shared().rules.push(Rule { action, fault, times });
    }

    /// All works again.
    pub fn mend(&self) {
        self.shared().rules.clear();
    }

    /// What was asked since this was asked last.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.shared().requests)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("nobody panics with it")
    }
}

fn arn(answer: &Value) -> String {
    format!("kms:{}", answer["KeyMetadata"]["Arn"].as_str().expect("a key"))
}

/// One request, and the answer to it.
fn serve(client: TcpStream, emulator: SocketAddr, shared: &Mutex<Shared>) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let header = |name: &str| {
        head.lines()
            .find_map(|line| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v))
    };
    let mut body = vec![0; header("content-length").and_then(|len| len.parse().ok()).unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let action = header("x-amz-target").and_then(|target| target.split_once('.')).map_or("", |(_, action)| action);
    let region = header("authorization").and_then(|signed| signed.split('/').nth(2)).unwrap_or_default();
    let fault = {
        let mut shared = shared.lock().expect("nobody panics with it");
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        shared.requests.push(Asked { action: action.to_owned(), body, region: region.to_owned() });
        let rule = shared.rules.iter_mut().find(|rule| rule.action == action && rule.times > 0);
        rule.map(|rule| {
            rule.times -= 1;
            rule.fault
        })
    };
    let mut client = client;
    match fault {
        Some(Fault::HangUp) => Ok(()),
        Some(Fault::Refuse(status, code)) => {
            let body = json!({ "__type": code, "message": "as the test wants it" }).to_string();
            let len = body.len();
            write!(
                client,
                "HTTP/1.1 {status} No\r\nConnection: close\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: {len}\r\n\r\n{body}"
            )
        }
        None => {
            // It closes the connection when it has answered, and says so.
            let mut emulator = TcpStream::connect(emulator)?;
            emulator.write_all(head.as_bytes())?;
            emulator.write_all(&body)?;
            io::copy(&mut emulator, &mut client).map(drop)
        }
    }
}
