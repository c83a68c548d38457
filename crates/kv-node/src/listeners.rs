//! The sockets of a node.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpListener;

use crate::node_error::NodeError;

/// Sockets that are bound before anything is touched, so that a port in use leaves no trace.
#[derive(Debug)]
pub struct Listeners {
    pub(crate) client: TcpListener,
    pub(crate) peer: TcpListener,
    pub(crate) http: TcpListener,
}

impl Listeners {
    /// Binds the three addresses of a node; port 0 is any.
    ///
    /// # Errors
    /// [`NodeError::Bind`] names the address.
    pub async fn bind(client: SocketAddr, peer: SocketAddr, http: SocketAddr) -> Result<Self, NodeError> {
        let bind = async |what, addr| {
            TcpListener::bind(addr).await.map_err(|cause| NodeError::Bind { what, addr, cause })
        };
        Ok(Self {
            client: bind("clients", client).await?,
            peer: bind("peers", peer).await?,
            http: bind("http", http).await?,
        })
    }

    /// Where clients, peers and HTTP are really served.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr, SocketAddr)> {
        Ok((self.client.local_addr()?, self.peer.local_addr()?, self.http.local_addr()?))
    }
}
