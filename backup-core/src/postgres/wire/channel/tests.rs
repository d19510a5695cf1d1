use std::time::Duration;

use postgres_protocol::message::backend::COPY_DATA_TAG;
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::*;

/// A message as it is sent.
fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

/// What a server sends, and what of it is data of the archive, and how many other messages there are.
#[derive(Debug)]
struct Sent {
    bytes: Vec<u8>,
    data: Vec<u8>,
    others: usize,
}

/// Data in messages that are mostly of one size, as those of a large file are, and other things between them.
fn sent(kind: Option<u8>, usual: impl Strategy<Value = usize>) -> impl Strategy<Value = Sent> {
    let lead: Vec<u8> = kind.into_iter().collect();
    let piece = prop_oneof![6 => Just(None), 2 => (0usize..1200).prop_map(Some), 1 => Just(Some(usize::MAX)), 1 => Just(Some(usize::MAX - 1))];
    (usual, prop::collection::vec(piece, 1..60)).prop_map(move |(usual, pieces)| {
        let mut sent = Sent { bytes: Vec::new(), data: Vec::new(), others: 0 };
        for (i, piece) in pieces.into_iter().enumerate() {
            match piece {
                Some(usize::MAX) => sent.bytes.extend(message(b'N', b"SWARNING\0Mthere is something\0\0")),
                Some(len) if len == usize::MAX - 1 => {
                    // Of another kind; without one there is only the end of the copy.
                    sent.bytes.extend(match kind {
                        Some(_) => message(COPY_DATA_TAG, b"p12345678"),
                        None => message(b'c', b""),
                    });
                    sent.others += 1;
                }
                len => {
                    let data: Vec<u8> = (0..len.unwrap_or(usual)).map(|at| (at * 7 + i * 31) as u8).collect();
                    sent.bytes.extend(message(COPY_DATA_TAG, &[&lead[..], &data].concat()));
                    sent.data.extend(data);
                }
            }
        }
        sent
    })
}

/// The data of all of it, read into rooms of these sizes in turn, and how many other messages came; the reader is interrupted now and then.
async fn read(sent: &Sent, kind: Option<u8>, step: usize, rooms: &[usize]) -> (Vec<u8>, usize) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut channel = Channel::new(Socket::Unix(ours), None);
    channel.logged_in();
    let bytes = sent.bytes.clone();
    let writer = tokio::spawn(async move {
        for piece in bytes.chunks(step) {
            theirs.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    let (mut data, mut others) = (Vec::new(), 0);
    for room in rooms.iter().cycle() {
        let mut room = vec![0; *room];
        let Ok(received) = tokio::time::timeout(Duration::from_micros(50), channel.receive_into(kind, &mut room)).await
        else {
            continue;
        };
        match received {
            Ok(Received::Copied(n)) => data.extend_from_slice(&room[..n]),
            Ok(Received::Other(_)) => others += 1,
            Err(_) => break,
        }
    }
    writer.await.unwrap();
    (data, others)
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #[test]
    fn data_arrives_whole_however_it_is_cut_and_wherever_it_goes(
        (kind, sent) in prop_oneof![Just(None), Just(Some(b'd'))].prop_flat_map(|kind| (Just(kind), sent(kind, prop::sample::select(&[1usize, 100, 1000][..])))),
        step in prop_oneof![1usize..30, 500usize..5000, Just(usize::MAX)],
        rooms in prop::collection::vec(prop_oneof![1usize..10, 50usize..5000], 1..5),
    ) {
        let (data, others) = run(read(&sent, kind, step, &rooms));
        prop_assert_eq!(data, sent.data);
        prop_assert_eq!(others, sent.others);
    }

    #[test]
    fn a_large_file_arrives_whole_in_messages_of_the_size_that_servers_send(
        (kind, sent) in prop_oneof![Just(None), Just(Some(b'd'))].prop_flat_map(|kind| (Just(kind), sent(kind, Just(32 << 10)))),
        step in prop_oneof![5_000usize..100_000, Just(usize::MAX)],
        rooms in prop::collection::vec(prop_oneof![5_000usize..100_000, Just(1 << 20)], 1..5),
    ) {
        let (data, others) = run(read(&sent, kind, step, &rooms));
        prop_assert!(data == sent.data, "{} of {} bytes", data.len(), sent.data.len());
        prop_assert_eq!(others, sent.others);
    }
}

#[test]
fn what_nobody_read_is_passed_over() {
    let bytes = [
        message(COPY_DATA_TAG, &[b"d", &[1; 500][..]].concat()),
        message(COPY_DATA_TAG, &[b"d", &[2; 500][..]].concat()),
        message(b'c', b""),
    ]
    .concat();
    run(async {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut channel = Channel::new(Socket::Unix(ours), None);
        channel.logged_in();
        theirs.write_all(&bytes).await.unwrap();
        let mut room = [0; 200];
        assert!(matches!(channel.receive_into(Some(b'd'), &mut room).await, Ok(Received::Copied(200))));
        assert_eq!(room, [1; 200]);
        assert!(
            matches!(channel.receive().await, Ok(Incoming::Message(Message::CopyData(body))) if body.data()[1] == 2)
        );
        assert!(matches!(channel.receive().await, Ok(Incoming::Message(Message::CopyDone))));
    });
}

#[test]
fn a_message_that_is_too_long_or_breaks_off_is_refused() {
    let read = |bytes: Vec<u8>| {
        run(async {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let mut channel = Channel::new(Socket::Unix(ours), None);
            channel.logged_in();
            theirs.write_all(&bytes).await.unwrap();
            drop(theirs);
            let mut room = [0; 1000];
            loop {
                match channel.receive_into(Some(b'd'), &mut room).await {
                    Ok(Received::Copied(_)) => {}
                    Ok(Received::Other(_)) => panic!("there is no other"),
                    Err(error) => return std::error::Error::source(&error).unwrap().to_string(),
                }
            }
        })
    };
    let long = (frame::COPY_DATA_BYTES_MAX as u32 + 1).to_be_bytes();
    assert!(read([&[COPY_DATA_TAG][..], &long, b"d"].concat()).contains("claims 4194305 bytes"));
    let mut cut = message(COPY_DATA_TAG, &[b"d", &[1; 500][..]].concat());
    cut.truncate(300);
    assert!(read(cut).contains("in the middle of a message"));
}
