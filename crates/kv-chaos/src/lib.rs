//! The chaos proxy: it stands on every link between nodes, and between clients and nodes, and hurts what passes.
//!
//! # Terms
//!
//! A *link* is a direction: who dials and who is dialled. Each has a listener of its own, so that n1 to n2 and n2 to n1 fail
//! apart. Nodes send requests on what they dialled, and answers come back on it; a *message* belongs to the direction in which
//! it travels. What a *rule* is, which messages it is about and what it does to them is `kv-fault`'s: here it is done.
//!
//! # How it works
//!
//! A connection that arrives at a listener ([`Proxy`]) passes two planes.
//!
//! - The plane of bytes (`wire`) reads from the socket and writes to it: latency, bandwidth, stalls, black holes, resets,
//!   half-closed connections. It is all there is for a protocol that is not ours.
//! - The plane of messages (`calls`, `carry`) ends HTTP/2 on both sides. Each call is carried message by message (`grpc` finds
//!   them, `inspect` says what they are, a frame between nodes is many): dropped, delayed, doubled, turned around, held, or with
//!   bits turned over. Pings of HTTP/2 are answered by the proxy: a link that shall look dead to them is stalled below.
//!
//! As long as nobody looks at messages a connection passes the first plane alone, which costs next to nothing. When somebody
//! does, for the first time, it is reset, and passes both when it is dialled again; from then on rules come and go without a
//! reset: while none looks at messages, bytes pass as they are, and messages are found again at the next boundary.
//! `faults` holds the rules and what connections need of them; `control` is told by gRPC what they shall be.
//!
//! # Caller's duties
//!
//! Nodes must dial each other at the proxy (`kvnode --peer-proxies`), each at listeners of its own. Rules that were loaded stay
//! until they are healed or the proxy ends.
//!
//! # What it does not do
//!
//! It knows no roles: whoever loads a rule resolves `leader-of(1)` first. It keeps nothing that nodes need; if it dies, their
//! connections break, and are dialled again when it is back, with no rule in force. It does not start, kill or pause nodes.

mod calls;
mod carry;
mod control;
mod faults;
mod grpc;
mod inspect;
mod message_log;
mod metrics;
mod proxy;
mod server;
mod wire;

pub use proxy::{Proxy, ProxyError, Wanted, cluster_links};
pub use server::{Server, ServerError};
