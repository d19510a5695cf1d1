//! A hardware security module without hardware: SoftHSM, reached as any other through PKCS#11.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::host::Host;

/// The label of the token.
pub const TOKEN: &str = "backup";
/// The PIN of its user.
pub const PIN: &str = "pin-4711-hush";

const SO_PIN: &str = "so-pin-0815";
/// Where distributions put the module.
const SPIES: [&str; 3] =
    ["/usr/lib/x86_64-linux-gnu/pkcs11-spy.so", "/usr/lib/aarch64-linux-gnu/pkcs11-spy.so", "/usr/lib/pkcs11-spy.so"];
const MODULES: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
];

/// An initialised token in a directory of its own.
#[derive(Debug)]
pub struct Token {
    directory: TempDir,
}

impl Token {
    /// Makes one.
    ///
    /// # Panics
    /// When SoftHSM is not installed.
    pub fn create() -> Self {
        let directory = tempfile::Builder::new().prefix("backup-test-hsm.").tempdir().expect("a temporary directory");
        std::fs::create_dir(directory.path().join("tokens")).expect("a directory");
        let configuration = format!("directories.tokendir = {}\n", directory.path().join("tokens").display());
        std::fs::write(directory.path().join("softhsm2.conf"), configuration).expect("a file");
        let token = Self { directory };
        let arguments = ["--init-token", "--free", "--label", TOKEN, "--so-pin", SO_PIN, "--pin", PIN];
        token.run(Command::new("softhsm2-util").args(arguments));
        token
    }

    /// The module.
    pub fn module() -> PathBuf {
        let found = MODULES.iter().map(Path::new).find(|path| path.exists());
        found.expect("no SoftHSM; run: scripts/install-deps test").to_owned()
    }

    /// OpenSC's module that writes down what another one, which `PKCS11SPY` names, is asked.
    ///
    /// # Panics
    /// Without it.
    pub fn spy() -> PathBuf {
        let found = SPIES.iter().map(Path::new).find(|path| path.exists());
        found.expect("no pkcs11-spy; run: scripts/install-deps test").to_owned()
    }

    /// Makes a pair of P-256 on it.
    pub fn pair(&self, label: &str, id: &str) {
        self.tool(&["--keypairgen", "--key-type", "EC:prime256v1", "--usage-derive", "--label", label, "--id", id]);
    }

    /// Makes an AES key on it.
    pub fn aes(&self, label: &str, id: &str) {
        self.tool(&["--keygen", "--key-type", "AES:32", "--label", label, "--id", id]);
    }

    /// Runs `pkcs11-tool` with it, logged in; what it printed.
    pub fn tool(&self, arguments: &[&str]) -> Vec<u8> {
        let mut command = Command::new("pkcs11-tool");
        command.arg("--module").arg(Self::module()).args(["--token-label", TOKEN, "--login", "--pin", PIN]);
        self.run(command.args(arguments))
    }

    /// Connects `host` to it, and gives it a file with the PIN; the URI of a key for it.
    pub fn connect(&self, host: &mut Host, label: &str) -> String {
        host.set("SOFTHSM2_CONF", self.directory.path().join("softhsm2.conf"));
        let pin = host.write("pin", format!("{PIN}\n"));
        std::fs::set_permissions(&pin, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("it is ours");
        self.uri(label, &pin.display().to_string())
    }

    /// The URI of a key, with this for the source of its PIN.
    pub fn uri(&self, label: &str, pin_source: &str) -> String {
        format!("pkcs11:token={TOKEN};object={label}?module-path={}&pin-source={pin_source}", Self::module().display())
    }

    fn run(&self, command: &mut Command) -> Vec<u8> {
        let output = command.env("SOFTHSM2_CONF", self.directory.path().join("softhsm2.conf")).output();
        let output = output.expect("no SoftHSM or OpenSC; run: scripts/install-deps test");
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}
