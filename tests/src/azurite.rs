//! Azurite, Microsoft's emulator of Azure Blob Storage. It checks signatures and honours conditions.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use backup_core::jiff::Timestamp;
use data_encoding::BASE64;
use ring::hmac;

use crate::host::Host;
use crate::process::{Program, npm};

/// The container that every server begins with.
pub const CONTAINER: &str = "backups";
/// The account that every emulator has.
pub const ACCOUNT: &str = "devstoreaccount1";
/// Its key, which is public: <https://learn.microsoft.com/azure/storage/common/storage-use-azurite>.
pub const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A running emulator with one empty container. What it holds is in its memory.
#[derive(Debug)]
pub struct Azurite {
    address: SocketAddr,
    _program: Program,
}

impl Azurite {
    /// Starts one.
    ///
    /// # Panics
    /// When it is not installed.
    pub fn start() -> Self {
        let program = Program::start(Path::new("node"), |_| {
            let script = npm("azurite/dist/src/blob/main.js").display().to_string();
            let arguments = ["--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence"];
            let mut all = vec![script];
            all.extend(arguments.map(str::to_owned));
            all.extend(["--disableTelemetry", "--skipApiVersionCheck"].map(str::to_owned));
            all
        });
        let address = program.until_listening("successfully listens on ");
        let server = Self { address, _program: program };
        server.make_container();
        server
    }

    /// `http://127.0.0.1:port/account`, as its endpoints have the account in the path.
    pub fn endpoint(&self) -> String {
        format!("http://{}/{ACCOUNT}", self.address)
    }

    /// The port of this machine that it listens on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What its users put into `AZURE_STORAGE_CONNECTION_STRING`.
    pub fn connection_string(&self) -> String {
        let endpoint = self.endpoint();
        format!("DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint};")
    }

    /// Makes `host` a client, with credentials, and its repository a prefix of the container.
    pub fn serve(&self, host: &mut Host) {
        host.set("BACKUP_REPO", format!("az://{CONTAINER}/some/prefix"));
        host.set("AZURE_STORAGE_CONNECTION_STRING", self.connection_string());
    }

    /// The library's client makes no containers, so this request is made and signed by hand:
    /// <https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key>.
    fn make_container(&self) {
        let date = Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT");
        let headers = format!("x-ms-date:{date}\nx-ms-version:2021-08-06\n");
        let resource = format!("/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container");
        let to_sign = format!("PUT{}{headers}{resource}", "\n".repeat(12));
        let key = hmac::Key::new(hmac::HMAC_SHA256, &BASE64.decode(KEY.as_bytes()).expect("the key is base64"));
        let signature = BASE64.encode(hmac::sign(&key, to_sign.as_bytes()).as_ref());
        let request = format!(
            "PUT /{ACCOUNT}/{CONTAINER}?restype=container HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: 0\r\n\
             x-ms-date: {date}\r\nx-ms-version: 2021-08-06\r\nAuthorization: SharedKey {ACCOUNT}:{signature}\r\n\r\n",
            self.address
        );
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        stream.write_all(request.as_bytes()).expect("it can be asked");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }
}
