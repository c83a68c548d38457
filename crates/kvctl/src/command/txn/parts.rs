//! Prepared parts and records, as they are shown.

use std::collections::BTreeSet;

use bytes::Bytes;
use kv_client::v1;
use kv_types::{SessionId, ShardId, TxnId};
use serde::Serialize;

use super::answers::RangeJson;
use crate::bytes_text::{Encoding, to_base64};
use crate::json::text;

/// What a transaction has left in a shard.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) txn: TxnId,
    /// As the shard names it, with its content.
    pub(super) name: v1::TxnName,
    pub(super) shard: ShardId,
    /// Where the shard's keys begin.
    pub(super) start: Bytes,
    /// Whether a record says that it is committed.
    is_committed: bool,
    pub(super) kind: Kind,
}

/// What it is.
#[derive(Debug)]
pub(super) enum Kind {
    /// A prepared part.
    Part { anchor: Bytes, age_ms: u64, writes: Vec<Bytes>, reads: Vec<Bytes>, ranges: Vec<v1::KeyRange> },
    /// The record of a committed one; a key of each participant that is not known to have ended its part, and its shard.
    Record { participants: Vec<(Bytes, Option<ShardId>)> },
}

/// All of it for programs.
#[derive(Debug, Serialize)]
pub(super) struct LeftJson {
    txn: String,
    content: String,
    kind: &'static str,
    state: &'static str,
    shard: u32,
    age_ms: Option<u64>,
    anchor: Option<String>,
    anchor_base64: Option<String>,
    writes: Vec<KeyJson>,
    reads: Vec<KeyJson>,
    ranges: Vec<RangeJson>,
    participants: Vec<ParticipantJson>,
}

/// A key.
#[derive(Debug, Serialize)]
struct KeyJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    key_base64: String,
}

/// A participant, by a key of its.
#[derive(Debug, Serialize)]
struct ParticipantJson {
    shard: Option<u32>,
    #[serde(flatten)]
    key: KeyJson,
}

impl Left {
    /// What is left in a shard; `starts` are where the shards begin, in order.
    pub(super) fn all(
        (shard, start): (ShardId, &Bytes),
        reply: v1::ListTxnsReply,
        starts: &[(Bytes, ShardId)],
    ) -> Vec<Self> {
        let left = |name: Option<v1::TxnName>, kind: Kind| {
            let name = name.unwrap_or_default();
            let txn = TxnId { session: SessionId::new(name.session), seq: name.seq };
            let is_committed = matches!(kind, Kind::Record { .. });
            Self { txn, name, shard, start: start.clone(), is_committed, kind }
        };
        let owner = |key: &Bytes| {
            let after = starts.partition_point(|(start, _)| start <= key);
            starts.get(after.checked_sub(1)?).map(|(_, shard)| *shard)
        };
        let parts = reply.prepared.into_iter().map(|part| {
            let v1::PreparedPart { txn, anchor, age_ms, writes, reads, ranges } = part;
            left(txn, Kind::Part { anchor, age_ms, writes, reads, ranges })
        });
        let records = reply.unfinished.into_iter().map(|record| {
            let named = record.participants.into_iter().map(|key| {
                let shard = owner(&key);
                (key, shard)
            });
            left(record.txn, Kind::Record { participants: named.collect() })
        });
        parts.chain(records).collect()
    }

    /// A part of a transaction that has a record waits only for the news of it.
    pub(super) fn mark_decided(all: &mut [Self]) {
        let key = |left: &Self| (left.txn, left.name.content.clone());
        let committed: BTreeSet<_> = all.iter().filter(|left| left.is_committed).map(key).collect();
        for left in all {
            left.is_committed = committed.contains(&key(left));
        }
    }

    pub(super) fn is_part(&self) -> bool {
        matches!(self.kind, Kind::Part { .. })
    }

    /// Whether nobody is known to have decided it.
    pub(super) fn is_in_doubt(&self) -> bool {
        !self.is_committed
    }

    pub(super) fn kind_word(&self) -> &'static str {
        if self.is_part() { "part" } else { "record" }
    }

    pub(super) fn state_word(&self) -> &'static str {
        if self.is_in_doubt() { "in_doubt" } else { "unfinished" }
    }

    pub(super) fn age_ms(&self) -> Option<u64> {
        match self.kind {
            Kind::Part { age_ms, .. } => Some(age_ms),
            Kind::Record { .. } => None,
        }
    }

    pub(super) fn anchor(&self) -> Option<&Bytes> {
        match &self.kind {
            Kind::Part { anchor, .. } => Some(anchor),
            Kind::Record { .. } => None,
        }
    }

    fn content(&self) -> String {
        Encoding::Hex.write(&self.name.content)
    }

    /// What it is in a line, then a line for each of its locks.
    pub(super) fn lines(&self, encoding: Encoding) -> Vec<String> {
        let (shard, state, content) = (self.shard.get(), self.state_word(), self.content());
        match &self.kind {
            Kind::Part { age_ms, writes, reads, ranges, .. } => {
                let mut lines =
                    vec![format!("part shard={shard} state={state} age_ms={age_ms} content={content}")];
                let lock = |kind: &str, key: String| format!("lock shard={shard} {kind} {key}");
                lines.extend(writes.iter().map(|key| lock("write", encoding.write(key))));
                lines.extend(reads.iter().map(|key| lock("read", encoding.write(key))));
                lines.extend(ranges.iter().map(|v1::KeyRange { start, end }| {
                    let end = end.as_ref().map_or_else(String::new, |end| encoding.write(end));
                    lock("range", format!("{}\t{end}", encoding.write(start)))
                }));
                lines
            }
            Kind::Record { participants } => {
                let shards =
                    participants.iter().map(|(_, shard)| crate::command::or_dash(shard.map(ShardId::get)));
                let shards = shards.collect::<Vec<_>>().join(",");
                vec![format!("record shard={shard} state={state} participants={shards} content={content}")]
            }
        }
    }
}

impl From<&Left> for LeftJson {
    fn from(left: &Left) -> Self {
        let keys = |keys: &[Bytes]| keys.iter().map(KeyJson::new).collect::<Vec<_>>();
        let (writes, reads, ranges, participants) = match &left.kind {
            Kind::Part { writes, reads, ranges, .. } => {
                (keys(writes), keys(reads), ranges.as_slice(), &[][..])
            }
            Kind::Record { participants } => (Vec::new(), Vec::new(), &[][..], participants.as_slice()),
        };
        let participant = |(key, shard): &(Bytes, Option<ShardId>)| ParticipantJson {
            shard: shard.map(ShardId::get),
            key: KeyJson::new(key),
        };
        Self {
            txn: left.txn.to_string(),
            content: left.content(),
            kind: left.kind_word(),
            state: left.state_word(),
            shard: left.shard.get(),
            age_ms: left.age_ms(),
            anchor: left.anchor().and_then(|anchor| text(anchor)),
            anchor_base64: left.anchor().map(|anchor| to_base64(anchor)),
            writes,
            reads,
            ranges: ranges.iter().map(|range| RangeJson::new(&range.start, range.end.as_deref())).collect(),
            participants: participants.iter().map(participant).collect(),
        }
    }
}

impl KeyJson {
    fn new(key: &Bytes) -> Self {
        Self { key: text(key), key_base64: to_base64(key) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(seq: u64, content: u8) -> Option<v1::TxnName> {
        Some(v1::TxnName { session: 5, seq, content: vec![content; 2].into() })
    }

    fn part(seq: u64, content: u8) -> v1::PreparedPart {
        v1::PreparedPart {
            txn: name(seq, content),
            anchor: "a".into(),
            age_ms: 812,
            writes: vec!["h".into()],
            reads: vec!["h\n".into()],
            ranges: vec![v1::KeyRange { start: "i".into(), end: None }],
        }
    }

    /// Shard 2 has three parts; shard 1 the record of the first.
    fn left() -> Vec<Left> {
        let starts = [(Bytes::new(), ShardId::new(1)), ("g".into(), ShardId::new(2))];
        let record = v1::UnfinishedTxn { txn: name(17, 1), participants: vec!["h".into()] };
        let there = v1::ListTxnsReply { unfinished: vec![record], ..v1::ListTxnsReply::default() };
        let prepared = vec![part(17, 1), part(17, 2), part(18, 1)];
        let here = v1::ListTxnsReply { prepared, ..v1::ListTxnsReply::default() };
        let mut left = Left::all((ShardId::new(1), &Bytes::new()), there, &starts);
        left.extend(Left::all((ShardId::new(2), &"g".into()), here, &starts));
        Left::mark_decided(&mut left);
        left
    }

    #[test]
    fn only_the_same_transaction_with_the_same_content_is_decided_by_a_record() {
        let states: Vec<_> = left().iter().map(|left| (left.kind_word(), left.state_word())).collect();
        let expected =
            [("record", "unfinished"), ("part", "unfinished"), ("part", "in_doubt"), ("part", "in_doubt")];
        assert_eq!(states, expected);
    }

    #[test]
    fn lines_have_their_shape() {
        let lines: Vec<_> = left().iter().take(2).flat_map(|left| left.lines(Encoding::Text)).collect();
        let expected = [
            "record shard=1 state=unfinished participants=2 content=0101",
            "part shard=2 state=unfinished age_ms=812 content=0101",
            "lock shard=2 write h",
            "lock shard=2 read h\\x0a",
            "lock shard=2 range i\t",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn json_has_its_shape() {
        let json: Vec<_> =
            left().iter().take(2).map(|left| serde_json::to_string(&LeftJson::from(left)).unwrap()).collect();
        assert_eq!(
            json[0],
            concat!(
                r#"{"txn":"ses5/17","content":"0101","kind":"record","state":"unfinished","shard":1,"age_ms":null,"#,
                r#""anchor":null,"anchor_base64":null,"writes":[],"reads":[],"ranges":[],"#,
                r#""participants":[{"shard":2,"key":"h","key_base64":"aA=="}]}"#
            )
        );
        assert_eq!(
            json[1],
            concat!(
                r#"{"txn":"ses5/17","content":"0101","kind":"part","state":"unfinished","shard":2,"age_ms":812,"#,
                r#""anchor":"a","anchor_base64":"YQ==","writes":[{"key":"h","key_base64":"aA=="}],"#,
                r#""reads":[{"key":"h\n","key_base64":"aAo="}],"#,
                r#""ranges":[{"start":"i","start_base64":"aQ==","end":null,"end_base64":null}],"participants":[]}"#
            )
        );
    }
}
