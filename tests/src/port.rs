//! Ports for servers that are told theirs before they listen, and for those that are not there.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

/// A port of this host that nobody else is given as long as this lives. Whoever connects to it is refused, until a server (which says
/// `SO_REUSEADDR`, as all do) listens there; and again when it has stopped.
#[derive(Debug)]
pub struct Port(TcpSocket);

impl Port {
    /// Takes one.
    ///
    /// # Panics
    /// When there are none left.
    pub fn take() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("sockets can be");
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a free port");
        Self(socket)
    }

    /// Its address, on the loopback interface.
    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("it is bound")
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.address().port()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_port_is_nobody_elses_and_refuses_unless_its_server_listens() {
        let port = Port::take();
        for _ in 0..3 {
            assert!(TcpStream::connect(port.address()).is_err());
            let server = TcpListener::bind(port.address()).unwrap();
            drop(TcpStream::connect(port.address()).unwrap());
            drop(server.accept().unwrap());
        }
        let others: Vec<TcpListener> = (0..500).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: HashSet<u16> = others.iter().map(|other| other.local_addr().unwrap().port()).collect();
        assert!(!ports.contains(&port.number()));
    }
}
