//! Keys on a PKCS#11 token.

use std::path::Path;

use backup_tests::decoder::{interpreter, python, run};
use backup_tests::host::Host;
use backup_tests::softhsm::{PIN, TOKEN, Token};
use data_encoding::BASE64;

use crate::BACKUP;

/// The recipient that `init` prints for an identity.
fn recipient_of(host: &Host, identity: &str) -> String {
    let made = host.backup(["init", "--json", "--identity", identity]).run().json();
    made["recipients"][0].as_str().expect("a recipient").to_owned()
}

#[test]
fn a_host_with_the_public_half_alone_writes_what_only_the_token_opens() {
    let token = Token::create();
    token.pair("dr", "01");
    token.pair("other", "02");
    let mut keeper = Host::new(BACKUP);
    let identity = token.connect(&mut keeper, "dr");
    let recipient = recipient_of(&keeper, &identity);
    assert!(recipient.starts_with("pkcs11:token=backup;object=dr;id=%01?public-key=B"), "{recipient}");
    assert!(!keeper.identity_file().exists());

    // No module, no token, no PIN.
    let mut writer = Host::new(BACKUP);
    writer.set("BACKUP_RECIPIENTS", &recipient);
    writer.set("BACKUP_REPO", keeper.repository());
    let id = writer.save("app", "for the safe");
    writer.backup(["verify", &id]).run().succeeded();
    writer.backup(["restore", "app", "--to-stdout"]).run().failed(12).hinting(&recipient);

    let open = |identity: &str| keeper.backup(["restore", "app", "--to-stdout", "--identity", identity]).run();
    assert_eq!(open(&identity).succeeded().stdout(), b"for the safe");
    open(&token.uri("other", &keeper.path("pin").display().to_string())).failed(12).hinting(&recipient);
    // By id alone, and by a command for the PIN.
    let by_id = identity.replace("object=dr", "id=%01");
    assert_eq!(open(&by_id).succeeded().stdout(), b"for the safe");
    let command = token.uri("dr", &format!("%7Cprintf%20{PIN}"));
    assert_eq!(open(&command).succeeded().stdout(), b"for the safe");
    // The module from the environment.
    let short = format!("pkcs11:object=dr?pin-source={}", keeper.path("pin").display());
    open(&short).failed(2).hinting("BACKUP_PKCS11_MODULE");
    keeper
        .backup(["verify", "app", "--deep", "--identity", &short])
        .env("BACKUP_PKCS11_MODULE", Token::module())
        .run()
        .succeeded();
    keeper
        .backup(["verify", "app", "--deep", "--identity", &short])
        .env("PKCS11_MODULE_PATH", Token::module())
        .run()
        .succeeded();
    // An identity with no recipients named is encrypted to, as that of a file is.
    keeper.backup(["save", "own", "--identity", &identity]).stdin("own").run().id();
    let wraps = writer.backup(["show", "own", "--json"]).run().json()["backup"]["recipients"].clone();
    assert_eq!(wraps, serde_json::json!([{ "kind": "pkcs11", "recipient": recipient }]));
}

#[test]
fn an_aes_key_seals_and_opens_on_the_token() {
    let token = Token::create();
    token.aes("wrap", "0a");
    token.aes("other", "0b");
    let mut host = Host::new(BACKUP);
    let key = token.connect(&mut host, "wrap");
    assert_eq!(recipient_of(&host, &key), "pkcs11:token=backup;object=wrap;id=%0A");
    host.backup(["save", "app", "--recipient", &key]).stdin("on the token").run().id();
    let open = |key: &str| host.backup(["restore", "app", "--to-stdout", "--identity", key]).run();
    assert_eq!(open(&key).succeeded().stdout(), b"on the token");
    open(&key.replace("object=wrap", "object=other")).failed(12);
    // Bound to the target.
    std::fs::rename(host.repository().join("app"), host.repository().join("moved")).unwrap();
    let moved = host.backup(["restore", "moved", "--to-stdout", "--identity", &key]).run();
    assert!(matches!(moved.code(), Some(12 | 13)), "{moved}");
}

#[test]
fn a_wrong_pin_a_pin_in_the_open_and_a_missing_key_are_told() {
    let token = Token::create();
    token.pair("dr", "01");
    let mut host = Host::new(BACKUP);
    let identity = token.connect(&mut host, "dr");
    let recipient = recipient_of(&host, &identity);
    host.set("BACKUP_RECIPIENTS", &recipient);
    host.save("app", "hidden");
    let open = |identity: &str| host.backup(["restore", "app", "--to-stdout", "--identity", identity]).run();

    let wrong = host.write("wrong", "0000");
    std::fs::set_permissions(&wrong, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    open(&token.uri("dr", &wrong.display().to_string())).failed(12).saying("is not that of the token");
    std::fs::set_permissions(&wrong, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    open(&token.uri("dr", &wrong.display().to_string())).failed(12).hinting("chmod 600");
    open(&token.uri("dr", "%7Cfalse")).failed(12).saying("command");
    open(&token.uri("dr", "/nowhere")).failed(12);
    let no_pin = format!("pkcs11:object=dr?module-path={}", Token::module().display());
    open(&no_pin).failed(12).saying("wants a PIN").hinting("pin-source");
    let in_the_open = open(&format!("{no_pin}&pin-value={PIN}")).failed(2).saying("pin-source");
    assert!(!in_the_open.stderr.contains(PIN), "{in_the_open}");

    open(&identity.replace("object=dr", "object=gone")).failed(12).saying("no key");
    open(&identity.replace("token=backup", "token=gone")).failed(12).hinting(TOKEN);
    open("pkcs11:object=dr?module-path=/nowhere.so").failed(2).saying("/nowhere.so");
    open("pkcs11:token=backup").failed(2).saying("object");
    assert_eq!(open(&identity).succeeded().stdout(), b"hidden");
}

#[test]
fn a_wrong_pin_is_tried_once_however_much_there_is_to_open() {
    let token = Token::create();
    token.pair("dr", "01");
    let mut host = Host::new(BACKUP);
    let identity = token.connect(&mut host, "dr");
    host.set("BACKUP_RECIPIENTS", recipient_of(&host, &identity));
    for text in ["one", "two", "three"] {
        host.save("app", text);
    }
    let logins = host.path("calls");
    host.set("PKCS11SPY", Token::module());
    host.set("PKCS11SPY_OUTPUT", &logins);
    let verify = |pin: &str| {
        let pin_file = host.write("pin", pin);
        std::fs::set_permissions(&pin_file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let (spy, pin_file) = (Token::spy(), pin_file.display());
        let spied = format!("pkcs11:token={TOKEN};object=dr?module-path={}&pin-source={pin_file}", spy.display());
        let verified = host.backup(["verify", "--all", "--deep", "--identity", &spied]).run();
        let calls = String::from_utf8_lossy(&std::fs::read(&logins).unwrap()).matches("C_Login\n").count();
        std::fs::remove_file(&logins).unwrap();
        (verified, calls)
    };
    let (verified, calls) = verify(PIN);
    verified.succeeded();
    assert!(calls >= 3, "the spy sees logins: {calls}");
    let (verified, calls) = verify("0000");
    let verified = verified.failed(12).saying("could not be verified");
    assert!(String::from_utf8_lossy(verified.stdout()).contains("is not that of the token"), "{verified}");
    assert_eq!(calls, 1, "each further one would bring the token nearer to locking itself");
}

#[test]
fn a_public_key_that_is_no_point_is_refused_before_anything_is_stored() {
    let host = Host::initialised(BACKUP);
    let zeros = "A".repeat(86);
    for (key, words) in
        [(format!("B{zeros}"), "not a point"), ("BAAA".to_owned(), "base64url"), ("A".repeat(87), "base64url")]
    {
        let recipient = format!("pkcs11:object=dr?public-key={key}");
        host.backup(["save", "app", "--recipient", &recipient]).stdin("x").run().failed(2).saying(words);
    }
    assert!(host.stored().is_empty());
}

#[test]
fn a_wrap_opens_by_hand_as_the_description_of_the_format_says() {
    let token = Token::create();
    token.pair("dr", "01");
    let mut host = Host::new(BACKUP);
    let identity = token.connect(&mut host, "dr");
    let recipient = recipient_of(&host, &identity);
    let id = host.backup(["save", "app", "--recipient", &recipient]).stdin("by hand").run().id();

    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/FORMAT.md");
    let page = std::fs::read_to_string(page).unwrap();
    let block = |language: &str, with: &str| {
        let blocks = page.split("\n```").filter_map(|block| block.strip_prefix(&format!("{language}\n")));
        blocks.into_iter().find(|block| block.contains(with)).expect("it is described").to_owned()
    };
    host.write("open_hpke.py", block("python", "HPKE-v1"));
    let volume = host.objects().into_iter().find(|(name, _)| name.ends_with("data.00000.vol")).expect("a volume").1;
    let len = u32::from_le_bytes(volume[8..12].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&volume[12..12 + len]).unwrap();
    host.write("wrap", BASE64.decode(header["wraps"][0]["wrap"].as_str().unwrap().as_bytes()).unwrap());
    let script = block("sh", "open_hpke.py").replace("python3", &interpreter().display().to_string());
    host.set("MODULE", Token::module());
    host.set("PIN", PIN);
    host.set("RECIPIENT", &recipient);
    let opened = host.shell(&format!("set -e\n{script}")).run().succeeded();
    let data_key = opened.text().lines().last().expect("a data key").trim().to_owned();
    let mut decode = python("decode.py");
    let restored = run(decode.args(["--data-key", &data_key]).arg(host.repository()).args([&id, "data"]));
    assert_eq!(restored.stdout, b"by hand", "{}", String::from_utf8_lossy(&restored.stderr));
}
