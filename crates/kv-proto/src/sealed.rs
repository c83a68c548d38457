//! Messages between peers as bytes with their checksum, so that the checksum is over exactly what is decoded.
//!
//! Nothing a peer says is acted on before its checksum was compared: neither a term in a frame, nor the incarnation in
//! a greeting, nor the index a snapshot ends at.

use bytes::Bytes;
use prost::Message;

use crate::{checksum, v1};

/// Why the bytes of a peer are not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The checksum does not match.
    #[error("the stated checksum is {stated:08x}, the content has {computed:08x}")]
    Checksum {
        /// What the message states.
        stated: u32,
        /// What its content has.
        computed: u32,
    },
    /// The checksum matches, but the content is not what it should be.
    #[error("the content cannot be decoded: {0}")]
    Decode(#[from] prost::DecodeError),
}

/// A message that carries another one as bytes, and their checksum.
pub trait Sealed {
    /// What it carries.
    type Content: Message + Default;

    /// Puts it together.
    fn of(body: Bytes, crc: u32) -> Self;

    /// The bytes, and the checksum it states for them.
    fn parts(self) -> (Bytes, u32);
}

macro_rules! sealed {
    ($($outer:ident carries $content:ident),+) => {$(
        impl Sealed for v1::$outer {
            type Content = v1::$content;

            fn of(body: Bytes, crc: u32) -> Self {
                Self { body, crc }
            }

            fn parts(self) -> (Bytes, u32) {
                (self.body, self.crc)
            }
        }
    )+};
}

sealed!(
    Frame carries PeerBatch,
    HelloRequest carries Identity,
    HelloReply carries HelloAnswer,
    SnapshotHeader carries SnapshotSubject,
    SnapshotPositionRequest carries SnapshotSubject,
    SnapshotPositionReply carries SnapshotPosition,
    SnapshotResult carries SnapshotOutcome,
    JoinRequest carries JoinSubject,
    JoinReply carries JoinOutcome,
    ChangeClusterRequest carries ClusterChange,
    ReadClusterRequest carries ReadClusterSubject,
    ReadClusterReply carries ReadClusterOutcome,
    RepairRequest carries RepairSubject,
    RepairReply carries RepairOutcome,
    CompareStateRequest carries CompareStateSubject,
    CompareStateReply carries CompareStateOutcome
);

/// Encodes a message for a peer.
pub fn seal<S: Sealed>(content: &S::Content) -> S {
    let body = Bytes::from(content.encode_to_vec());
    let crc = checksum::body(&body);
    S::of(body, crc)
}

/// Checks and decodes a message of a peer. What it holds in bytes shares the memory of `sealed`.
///
/// # Errors
/// [`SealError`]; nothing of the message may be used then.
pub fn open<S: Sealed>(sealed: S) -> Result<S::Content, SealError> {
    let (body, stated) = sealed.parts();
    let computed = checksum::body(&body);
    if computed != stated {
        return Err(SealError::Checksum { stated, computed });
    }
    Ok(S::Content::decode(body)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch(payload: Vec<u8>, lamport: u64) -> v1::PeerBatch {
        let entry = v1::Entry {
            id: Some(v1::LogId { term: 1, index: 2 }),
            stamp: None,
            body: Some(v1::entry::Body::Command(payload.into())),
        };
        let append = v1::Append { entries: vec![entry], commit: 1, ..v1::Append::default() };
        let kind = Some(v1::raft_message::Kind::Append(append));
        let message = v1::RaftMessage { from: 1, to: 2, term: 3, kind };
        v1::PeerBatch {
            lamport,
            messages: vec![v1::ShardMessage { shard: 1, body: Some(v1::shard_message::Body::Raft(message)) }],
        }
    }

    #[test]
    fn a_lost_frame_is_not_an_empty_batch() {
        assert!(matches!(open(v1::Frame::default()), Err(SealError::Checksum { .. })));
        assert_eq!(open::<v1::Frame>(seal(&v1::PeerBatch::default())), Ok(v1::PeerBatch::default()));
    }

    fn identity() -> v1::Identity {
        let member = v1::Member {
            node: 2,
            peer_addr: "h:1".to_owned(),
            client_addr: "h:2".to_owned(),
            incarnation: 0x0123_4567_89ab_cdef,
        };
        v1::Identity {
            cluster: "c".to_owned(),
            from: 2,
            to: 3,
            incarnation: 0x0123_4567_89ab_cdef,
            stage: v1::Stage::Formed.into(),
            candidate: Some(v1::CandidateTable {
                members: vec![member.clone()],
                split_keys: vec!["k".into()],
            }),
            cluster_id: 0xfedc_ba98_7654_3210,
            speaker: Some(member),
            version: "0.1.0".to_owned(),
        }
    }

    fn every_flipped_bit_is_refused<S: Sealed + Message + Default>(content: &S::Content) {
        let wire = seal::<S>(content).encode_to_vec();
        for at in 0..wire.len() {
            for bit in 0..8 {
                let mut damaged = wire.clone();
                damaged[at] ^= 1 << bit;
                if let Ok(sealed) = S::decode(&damaged[..]) {
                    assert!(open(sealed).is_err(), "byte {at} of {wire:02x?}, bit {bit}");
                }
            }
        }
        for len in 0..wire.len() {
            if let Ok(sealed) = S::decode(&wire[..len]) {
                assert!(open(sealed).is_err(), "{len} of {} bytes", wire.len());
            }
        }
    }

    #[test]
    fn every_flipped_bit_of_a_greeting_is_refused() {
        every_flipped_bit_is_refused::<v1::HelloRequest>(&identity());
        let answer = v1::HelloAnswer { identity: Some(identity()), refused: "no".to_owned(), removed: false };
        every_flipped_bit_is_refused::<v1::HelloReply>(&answer);
        assert_eq!(open::<v1::HelloRequest>(seal(&identity())), Ok(identity()));
    }

    #[test]
    fn every_flipped_bit_around_a_snapshot_is_refused() {
        let subject = v1::SnapshotSubject {
            shard: 1,
            from: 2,
            to: 3,
            term: 4,
            cluster_id: 5,
            repair: true,
            stream: 6,
            first_chunk: 7,
        };
        every_flipped_bit_is_refused::<v1::SnapshotHeader>(&subject);
        every_flipped_bit_is_refused::<v1::SnapshotPositionRequest>(&subject);
        for next_chunk in [None, Some(0), Some(7)] {
            let position = v1::SnapshotPosition { next_chunk };
            every_flipped_bit_is_refused::<v1::SnapshotPositionReply>(&position);
        }
        let installed = Some(v1::LogId { term: 4, index: 1000 });
        let outcome = v1::SnapshotOutcome { installed, refused: String::new() };
        every_flipped_bit_is_refused::<v1::SnapshotResult>(&outcome);
    }

    #[test]
    fn a_greeting_without_a_checksum_is_refused() {
        // As a release before checksums would have sent it: the identity itself in field 1.
        let old = v1::HelloRequest { body: identity().encode_to_vec().into(), crc: 0 };
        assert!(matches!(open(old), Err(SealError::Checksum { stated: 0, .. })));
    }

    proptest! {
        #[test]
        fn every_flipped_byte_is_detected(payload in prop::collection::vec(any::<u8>(), 0..48), flip in 1..=255u8) {
            let sent = batch(payload, 7);
            let wire = seal::<v1::Frame>(&sent).encode_to_vec();
            for at in 0..wire.len() {
                let mut damaged = wire.clone();
                damaged[at] ^= flip;
                if let Ok(frame) = v1::Frame::decode(&damaged[..]) {
                    prop_assert!(open(frame).is_err(), "byte {at} of {wire:02x?} flipped by {flip:02x}");
                }
            }
        }

        #[test]
        fn a_cut_frame_is_detected(payload in prop::collection::vec(any::<u8>(), 0..48)) {
            let wire = seal::<v1::Frame>(&batch(payload, 7)).encode_to_vec();
            for len in 0..wire.len() {
                if let Ok(frame) = v1::Frame::decode(&wire[..len]) {
                    prop_assert!(open(frame).is_err(), "{len} of {} bytes", wire.len());
                }
            }
        }

        #[test]
        fn a_frame_round_trips(payload in prop::collection::vec(any::<u8>(), 0..300), lamport in any::<u64>()) {
            let sent = batch(payload, lamport);
            prop_assert_eq!(open::<v1::Frame>(seal(&sent)), Ok(sent));
        }
    }
}
