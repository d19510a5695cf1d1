//! Servers that are none, or mean harm: they cost neither memory nor time.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use backup_core::Error;
use backup_core::postgres::ConnInfo;
use backup_core::postgres::wal::{Lsn, Timeline};
use backup_core::postgres::wire::{BaseBackupOptions, ConnectOptions, Connection, Environment, Mode};

/// Whatever happens is over by then.
const DEADLINE: Duration = Duration::from_secs(120);

/// A message of a server.
fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

/// The beginning of one that claims to be longer.
fn claim(tag: u8, length: u32) -> Vec<u8> {
    [&[tag][..], &length.to_be_bytes()].concat()
}

fn row(columns: &[&str]) -> Vec<u8> {
    let mut body = u16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
    for column in columns {
        body.extend(u32::try_from(column.len()).unwrap().to_be_bytes());
        body.extend(column.as_bytes());
    }
    message(b'D', &body)
}

fn welcome() -> Vec<u8> {
    [message(b'R', &[0; 4]), message(b'S', b"server_version\x0018.1\0"), message(b'Z', b"I")].concat()
}

/// Reads a start-up message: it has no tag.
fn read_startup(socket: &mut TcpStream) -> std::io::Result<()> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let mut rest = vec![0; u32::from_be_bytes(length) as usize - 4];
    socket.read_exact(&mut rest)
}

/// Reads any other message.
fn read_message(socket: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    socket.read_exact(&mut [0])?;
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let mut rest = vec![0; u32::from_be_bytes(length) as usize - 4];
    socket.read_exact(&mut rest)?;
    Ok(rest)
}

/// What a false server does with whoever connects; errors end it.
type Script = fn(&mut TcpStream) -> std::io::Result<()>;

/// Starts a false server; returns how to connect to it.
fn false_server(script: Script, parameters: &str) -> ConnectOptions {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // It ends with the process of the test.
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let _ = script(&mut socket);
            // Closing with something unread would reset the connection, and what was written might be lost.
            let _ = socket.shutdown(Shutdown::Write);
            let _ = std::io::copy(&mut socket, &mut std::io::sink());
        }
    });
    let text = format!("host=127.0.0.1 port={port} user=me password=s3cret {parameters}");
    ConnectOptions::resolve(&ConnInfo::parse(&text).unwrap(), &Environment::empty()).unwrap()
}

/// The error that a client has, with all its causes.
async fn refused(script: Script, parameters: &str) -> String {
    let options = false_server(script, parameters);
    let error = tokio::time::timeout(DEADLINE, Connection::connect(&options, Mode::Replication));
    chain(&error.await.expect("it ends").unwrap_err())
}

fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

/// The error of a command, to which the server gives an answer of its own.
async fn answered<T>(answer: Script, command: impl AsyncFnOnce(Connection) -> Result<T, Error>) -> String {
    let options = false_server(answer, "sslmode=disable");
    let done = async { command(Connection::connect(&options, Mode::Replication).await.expect("it lets us in")).await };
    match tokio::time::timeout(DEADLINE, done).await.expect("it ends") {
        Ok(_) => panic!("it worked"),
        Err(error) => chain(&error),
    }
}

fn let_in(socket: &mut TcpStream) -> std::io::Result<()> {
    read_startup(socket)?;
    socket.write_all(&welcome())?;
    read_message(socket).map(drop)
}

#[tokio::test]
async fn lengths_before_the_login_are_bounded() {
    for (tag, script) in [
        ('R', (|socket| socket.write_all(&claim(b'R', u32::MAX))) as Script),
        ('E', |socket| socket.write_all(&claim(b'E', 1 << 20))),
        ('N', |socket| socket.write_all(&claim(b'N', 0x7fff_ffff))),
        ('S', |socket| socket.write_all(&claim(b'S', 30_001))),
        ('Z', |socket| socket.write_all(&claim(b'Z', 6))),
        ('R', |socket| socket.write_all(&claim(b'R', 3))),
    ] {
        let error = refused(script, "sslmode=disable").await;
        assert!(error.contains(&format!("message '{tag}' claims")), "{error}");
    }
    let error = refused(|socket| socket.write_all(&claim(b'D', 20)), "sslmode=disable").await;
    assert!(error.contains("message 'D' is not"), "rows before the login: {error}");
}

#[tokio::test]
async fn what_is_no_postgresql_is_told() {
    let http: Script = |socket| socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    for parameters in ["sslmode=disable", "sslmode=require", "sslmode=prefer"] {
        let error = refused(http, parameters).await;
        assert!(error.contains("the server does not speak PostgreSQL's protocol"), "{parameters}: {error}");
    }
    // A copy of a message, and then nothing.
    let error = refused(|socket| socket.write_all(&message(b'R', &[0; 4])[..7]), "sslmode=disable").await;
    assert!(error.contains("in the middle of a message"), "{error}");
    let error = refused(|_| Ok(()), "sslmode=disable").await;
    assert!(error.contains("lost the connection"), "{error}");
    let error = refused(|socket| socket.write_all(&message(b'S', b"no end")), "sslmode=disable").await;
    assert!(error.contains("message 'S' is malformed"), "{error}");
}

#[tokio::test]
async fn endless_talk_before_the_login_ends() {
    let error = refused(
        |socket| loop {
            socket.write_all(&message(b'N', b"SNOTICE\0C00000\0Mhello\0\0"))?;
        },
        "sslmode=disable",
    );
    assert!(error.await.contains("notices and nothing else"));
    let error = refused(
        |socket| {
            for number in 0_u64.. {
                socket.write_all(&message(b'S', format!("setting{number}\0x\0").as_bytes()))?;
            }
            Ok(())
        },
        "sslmode=disable",
    );
    assert!(error.await.contains("endless settings"));
    let error = refused(
        |socket| loop {
            socket.write_all(&message(b'R', &[0; 4]))?;
        },
        "sslmode=disable",
    );
    assert!(error.await.contains("does not get ready"));
}

#[tokio::test]
async fn silence_ends_with_the_time_that_was_allowed() {
    let silent: Script = |socket| {
        read_startup(socket)?;
        std::thread::sleep(DEADLINE);
        Ok(())
    };
    for parameters in ["sslmode=disable", "sslmode=require"] {
        let error = refused(silent, &format!("{parameters} connect_timeout=1")).await;
        assert!(error.contains("no answer within 1 s"), "{error}");
    }
}

#[tokio::test]
async fn a_server_has_to_show_that_it_knows_the_password() {
    // Lets us in in the middle of SCRAM.
    let error = refused(
        |socket| {
            read_startup(socket)?;
            socket.write_all(&message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"))?;
            let first = String::from_utf8(read_message(socket)?).unwrap();
            let nonce = first.rsplit_once("r=").unwrap().1;
            let challenge = format!("r={nonce}server,s=c2FsdHNhbHRzYWx0c2E=,i=4096");
            socket.write_all(&message(b'R', &[b"\0\0\0\x0b", challenge.as_bytes()].concat()))?;
            read_message(socket)?;
            socket.write_all(&welcome())
        },
        "sslmode=disable",
    );
    assert!(error.await.contains("does not show that it knows the password"));
    let error = refused(
        |socket| {
            read_startup(socket)?;
            socket.write_all(&message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"))?;
            let first = String::from_utf8(read_message(socket)?).unwrap();
            let nonce = first.rsplit_once("r=").unwrap().1;
            let challenge = format!("r={nonce}server,s=c2FsdHNhbHRzYWx0c2E=,i=4096");
            socket.write_all(&message(b'R', &[b"\0\0\0\x0b", challenge.as_bytes()].concat()))?;
            read_message(socket)?;
            socket.write_all(&message(b'R', b"\0\0\0\x0cv=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="))
        },
        "sslmode=disable",
    );
    assert!(error.await.contains("does not know the password"));
}

#[tokio::test]
async fn hashing_a_password_for_ever_is_refused() {
    let error = refused(
        |socket| {
            read_startup(socket)?;
            socket.write_all(&message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"))?;
            let first = String::from_utf8(read_message(socket)?).unwrap();
            let nonce = first.rsplit_once("r=").unwrap().1;
            let challenge = format!("r={nonce}server,s=c2FsdHNhbHRzYWx0c2E=,i=2147483647");
            socket.write_all(&message(b'R', &[b"\0\0\0\x0b", challenge.as_bytes()].concat()))?;
            read_message(socket).map(drop)
        },
        "sslmode=disable",
    );
    assert!(error.await.contains("2147483647 iterations, more than 100000"));
}

#[tokio::test]
async fn a_password_is_given_only_once_and_never_where_it_can_be_read() {
    let error = refused(
        |socket| {
            read_startup(socket)?;
            socket.write_all(&message(b'R', &[0, 0, 0, 3]))?;
            let heard = read_message(socket);
            assert!(heard.is_err(), "the password was sent");
            Ok(())
        },
        "sslmode=disable",
    );
    assert!(error.await.contains("anybody on the way can read"));
    let error = refused(
        |socket| loop {
            socket.write_all(&message(b'R', &[0, 0, 0, 5, 1, 2, 3, 4]))?;
        },
        "sslmode=disable",
    );
    assert!(error.await.contains("second authentication"));
}

#[tokio::test]
async fn what_comes_before_tls_is_not_taken_for_what_comes_in_it() {
    let error = refused(
        |socket| {
            read_startup(socket)?;
            socket.write_all(&[b"S".as_slice(), &welcome()].concat())?;
            read_message(socket).map(drop)
        },
        "sslmode=require",
    );
    let error = error.await;
    assert!(error.contains("no TLS session"), "{error}");
    let error = refused(
        |socket| {
            read_startup(socket)?;
            socket.write_all(&message(b'E', b"SFATAL\0C00000\0Mcall this number\0\0"))
        },
        "sslmode=require",
    );
    let error = error.await;
    assert!(error.contains("failed when asked for TLS") && !error.contains("call this number"), "{error}");
}

#[tokio::test]
async fn results_are_bounded() {
    let query = async |mut connection: Connection| connection.query("SELECT 1").await;
    let error = answered(
        |socket| {
            let_in(socket)?;
            loop {
                socket.write_all(&row(&["x"]))?;
            }
        },
        query,
    );
    assert!(error.await.contains("33554432 bytes"));
    let error = answered(
        |socket| {
            let_in(socket)?;
            let nulls = [&[0xff, 0xff][..], &[0xff; 4 * 0xffff]].concat();
            loop {
                socket.write_all(&message(b'D', &nulls))?;
            }
        },
        query,
    );
    assert!(error.await.contains("33554432 bytes"));
    let error = answered(
        |socket| {
            let_in(socket)?;
            loop {
                socket.write_all(&message(b'C', b"SELECT 1\0"))?;
            }
        },
        query,
    );
    assert!(error.await.contains("33554432 bytes"));
    for (length, tag) in [(20 << 20, b'D'), (5 << 20, b'd'), (2 << 20, b'E')] {
        let script: Script = match tag {
            b'D' => |socket| let_in(socket).and_then(|()| socket.write_all(&claim(b'D', 20 << 20))),
            b'd' => |socket| let_in(socket).and_then(|()| socket.write_all(&claim(b'd', 5 << 20))),
            _ => |socket| let_in(socket).and_then(|()| socket.write_all(&claim(b'E', 2 << 20))),
        };
        let error = answered(script, query).await;
        assert!(error.contains(&format!("claims {length} bytes")), "{error}");
    }
    let error =
        answered(|socket| let_in(socket).and_then(|()| socket.write_all(&message(b'D', &[0, 1, 0, 0, 0, 9]))), query);
    assert!(error.await.contains("unexpected EOF"));
}

/// The beginning of a base backup with one archive to come.
fn begin_backup(socket: &mut TcpStream) -> std::io::Result<()> {
    let_in(socket)?;
    let complete = message(b'C', b"SELECT\0");
    let base = message(b'D', &[&[0, 3][..], &[0xff; 12]].concat());
    let open = message(b'H', &[0, 0, 0]);
    socket.write_all(&[row(&["0/2000028", "1"]), complete.clone(), base, complete, open].concat())
}

async fn backup(connection: Connection) -> Result<u64, Error> {
    let mut backup = connection.base_backup(&BaseBackupOptions::default()).await?;
    let mut events = 0;
    while backup.next().await?.is_some() {
        events += 1;
    }
    Ok(events)
}

#[tokio::test]
async fn a_base_backup_that_is_not_whole_is_an_error() {
    let error = answered(
        |socket| {
            begin_backup(socket)?;
            let end = [message(b'c', &[]), row(&["0/2000100", "1"]), message(b'C', b"SELECT\0"), message(b'Z', b"I")];
            socket.write_all(&end.concat())
        },
        backup,
    );
    assert!(error.await.contains("ends without all archives"));
    let error = answered(
        |socket| {
            begin_backup(socket)?;
            let archive = message(b'd', b"nbase.tar\0\0");
            let data = message(b'd', b"d...");
            socket.write_all(
                &[archive, data, message(b'c', &[]), message(b'C', b"SELECT\0"), message(b'Z', b"I")].concat(),
            )
        },
        backup,
    );
    assert!(error.await.contains("stops before its end"));
    let error = answered(
        |socket| {
            begin_backup(socket)?;
            socket.write_all(&[message(b'd', b"nbase.tar\0\0"), message(b'd', b"d...")].concat())
        },
        backup,
    );
    assert!(error.await.contains("closed the connection"));
}

#[tokio::test]
async fn archives_are_those_that_were_announced() {
    for script in [
        (|socket| begin_backup(socket).and_then(|()| socket.write_all(&message(b'd', b"n../../etc/passwd\0\0"))))
            as Script,
        |socket| begin_backup(socket).and_then(|()| socket.write_all(&message(b'd', b"nbase.tar/../x\0\0"))),
        |socket| begin_backup(socket).and_then(|()| socket.write_all(&message(b'd', b"n99.tar\0/elsewhere\0"))),
        |socket| begin_backup(socket).and_then(|()| socket.write_all(&message(b'd', b"nbase.tar"))),
        |socket| begin_backup(socket).and_then(|()| socket.write_all(&message(b'd', b"dbefore any archive"))),
        |socket| begin_backup(socket).and_then(|()| socket.write_all(&message(b'd', b"x"))),
        |socket| begin_backup(socket).and_then(|()| socket.write_all(&message(b'd', b""))),
        |socket| {
            let twice = [message(b'd', b"nbase.tar\0\0"), message(b'd', b"nbase.tar\0\0")].concat();
            begin_backup(socket).and_then(|()| socket.write_all(&twice))
        },
    ] {
        let error = answered(script, backup).await;
        assert!(error.contains("base backup is malformed"), "{error}");
    }
}

/// The beginning of a stream of the log, from 0/1000000.
fn begin_stream(socket: &mut TcpStream) -> std::io::Result<()> {
    let_in(socket)?;
    socket.write_all(&message(b'W', &[0, 0, 0]))
}

fn log(start: u64, data: &[u8]) -> Vec<u8> {
    message(b'd', &[b"w", &start.to_be_bytes()[..], &start.to_be_bytes(), &[0; 8], data].concat())
}

#[tokio::test]
async fn log_with_a_gap_or_an_overlap_is_an_error() {
    let stream = async |connection: Connection| {
        let mut stream = connection.start_replication(None, Lsn(0x100_0000), Timeline::FIRST).await?;
        while stream.next().await?.is_some() {}
        Ok(())
    };
    for (script, why) in [
        (
            (|socket| {
                begin_stream(socket)?;
                socket.write_all(&[log(0x100_0000, &[1; 100]), log(0x100_0065, &[2; 100])].concat())
            }) as Script,
            "from 0/1000065 where 0/1000064 comes next",
        ),
        (
            |socket| {
                begin_stream(socket)?;
                socket.write_all(&[log(0x100_0000, &[1; 100]), log(0x100_0063, &[2; 100])].concat())
            },
            "from 0/1000063 where 0/1000064 comes next",
        ),
        (|socket| begin_stream(socket).and_then(|()| socket.write_all(&message(b'd', b"w1234"))), "malformed"),
        (|socket| begin_stream(socket).and_then(|()| socket.write_all(&message(b'd', b"?"))), "malformed"),
        (
            |socket| {
                begin_stream(socket).and_then(|()| socket.write_all(&message(b'd', &[&b"k"[..], &[0xff; 17]].concat())))
            },
            "closed the connection",
        ),
    ] {
        let error = answered(script, stream).await;
        assert!(error.contains(why), "{why}: {error}");
    }
}
