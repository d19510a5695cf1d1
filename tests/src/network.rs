//! A network between a client and a server that can be pulled.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// How soon the two ends of a connection notice that the network changed.
const SOON: Duration = Duration::from_millis(50);

/// A port that leads to another one, unless it is pulled. Its threads end with the process.
#[derive(Debug)]
pub struct Network {
    port: u16,
    pulled: Arc<AtomicBool>,
}

impl Network {
    /// A way to a port of this machine.
    ///
    /// # Panics
    /// When there is no port left.
    pub fn to(port: u16) -> Self {
        Self::in_turn(&[port])
    }

    /// A way to several ports, as of servers that share one address: the first connection leads to the first of them, and so on.
    ///
    /// # Panics
    /// When there is no port left.
    pub fn in_turn(ports: &[u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let network =
            Self { port: listener.local_addr().expect("bound").port(), pulled: Arc::new(AtomicBool::new(false)) };
        let (pulled, ports) = (Arc::clone(&network.pulled), ports.to_owned());
        thread::spawn(move || {
            for (client, port) in listener.incoming().flatten().zip(ports.into_iter().cycle()) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                connect(client, server, &pulled);
            }
        });
        network
    }

    /// Where it begins.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on all bytes vanish, and nobody is told. A connection that has lost any never carries another one.
    pub fn pull(&self) {
        self.pulled.store(true, Ordering::SeqCst);
    }

    /// New connections work again.
    pub fn plug_in(&self) {
        self.pulled.store(false, Ordering::SeqCst);
    }
}

fn connect(client: TcpStream, server: TcpStream, pulled: &Arc<AtomicBool>) {
    let dead = Arc::new(AtomicBool::new(false));
    let ends = [(client.try_clone(), server.try_clone()), (Ok(server), Ok(client))];
    for (from, to) in ends {
        let (Ok(from), Ok(to), pulled, dead) = (from, to, Arc::clone(pulled), Arc::clone(&dead)) else { return };
        thread::spawn(move || carry(from, to, &pulled, &dead));
    }
}

/// Carries bytes one way until either end closes; if the connection is dead by then, the other end does not hear of it.
fn carry(mut from: TcpStream, mut to: TcpStream, pulled: &AtomicBool, dead: &AtomicBool) {
    from.set_read_timeout(Some(SOON)).expect("not zero");
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer);
        if pulled.load(Ordering::SeqCst) {
            dead.store(true, Ordering::SeqCst);
        }
        match read {
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
            Ok(n @ 1..) if !dead.load(Ordering::SeqCst) && to.write_all(&buffer[..n]).is_err() => return,
            Ok(1..) => {}
            Ok(0) | Err(_) if dead.load(Ordering::SeqCst) => return thread::park(),
            Ok(0) | Err(_) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
        }
    }
}
