//! What can happen in the world, and how often it does.

use std::collections::BTreeSet;

use proptest::prelude::*;

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Event {
    /// A client without a session opens one; one that has one sends the opening again.
    Open { client: usize },
    /// A client sends a new request.
    Send { client: usize, kind: u8 },
    /// A request without a session is sent, its time off by so many seconds.
    SendTimed { kind: u8, off: i16 },
    /// The client of an earlier message sends it again, with what it knows by now.
    Resend { message: usize },
    /// The id of an earlier message is sent with other content.
    Reuse { message: usize },
    /// Somebody settles the id of an earlier message; he may not know how far the client is.
    Settle { message: usize, stranger: bool },
    /// A message arrives. It can do so again.
    Deliver { message: usize },
    /// The newest message but so many arrives.
    DeliverLate { back: usize },
    /// A client leaves so many numbers out, so that the next ones take the places of earlier ones.
    Skip { client: usize, numbers: u64 },
    /// The data group trims all its sessions.
    Trim,
    /// A client gives its oldest open request up.
    GiveUp { client: usize },
    /// Clients renew.
    Renew { clients: BTreeSet<usize> },
    /// A renewal of any session there ever was, closed or dead, arrives late.
    RenewLate { session: usize },
    /// A client closes its session and forgets it.
    Close { client: usize },
    /// The meta group ends what is over.
    Expire,
    /// The data group asks which of its sessions are dead; the answer may arrive at any time.
    AskDead,
    /// Such an answer is carried out.
    Collect { answer: usize },
    /// The meta group's leader stamps later from now on, or a new one earlier.
    MetaTime { by_ms: i32 },
    /// The same of the data group.
    DataTime { by_ms: i32 },
    /// The data group's clock ticks.
    Tick,
}

/// Three clients, and more deliveries than anything else.
pub fn event() -> impl Strategy<Value = Event> {
    let client = || 0..3_usize;
    let message = || any::<prop::sample::Index>().prop_map(|index| index.index(1 << 20));
    let clients = prop::collection::btree_set(client(), 1..=3);
    prop_oneof![
        3 => client().prop_map(|client| Event::Open { client }),
        8 => (client(), 0..6_u8).prop_map(|(client, kind)| Event::Send { client, kind }),
        3 => (0..6_u8, prop_oneof![4 => -3..3_i16, 1 => -950..-850_i16, 1 => 290..310_i16])
            .prop_map(|(kind, off)| Event::SendTimed { kind, off }),
        4 => message().prop_map(|message| Event::Resend { message }),
        1 => message().prop_map(|message| Event::Reuse { message }),
        2 => (message(), any::<bool>()).prop_map(|(message, stranger)| Event::Settle { message, stranger }),
        10 => message().prop_map(|message| Event::Deliver { message }),
        12 => (0..3_usize).prop_map(|back| Event::DeliverLate { back }),
        2 => client().prop_map(|client| Event::GiveUp { client }),
        1 => (client(), 250..257_u64).prop_map(|(client, numbers)| Event::Skip { client, numbers }),
        1 => Just(Event::Trim),
        2 => clients.prop_map(|clients| Event::Renew { clients }),
        1 => message().prop_map(|session| Event::RenewLate { session }),
        2 => client().prop_map(|client| Event::Close { client }),
        2 => Just(Event::Expire),
        3 => Just(Event::AskDead),
        3 => message().prop_map(|answer| Event::Collect { answer }),
        3 => prop_oneof![4 => 0..4_000_i32, 1 => -2_000..0_i32].prop_map(|by_ms| Event::MetaTime { by_ms }),
        3 => prop_oneof![4 => 0..4_000_i32, 1 => -2_000..0_i32, 1 => 800_000..950_000_i32]
            .prop_map(|by_ms| Event::DataTime { by_ms }),
        1 => Just(Event::Tick),
    ]
}
