//! Commits as no client of ours would send them: each is refused by name, and changes nothing.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use kv_client::{Code, v1};
use kv_e2e::raw::{self, Raw, Refused, Session};
use kv_e2e::{Cluster, Options, wait};
use kv_types::limits::{KEY_BYTES_MAX, SESSION_WINDOW, TXN_BYTES_MAX, TXN_OPERATIONS_MAX, VALUE_BYTES_MAX};
use kv_types::{Key, Outcome};
use v1::{AbortReason, Reason};

const PATIENCE: Duration = Duration::from_secs(30);

/// A client's hour.
const LONG: Duration = Duration::from_secs(3600);

const INVALID: (Code, Reason, Outcome) = (Code::InvalidArgument, Reason::Invalid, Outcome::NotApplied);
const TOO_LARGE: (Code, Reason, Outcome) = (Code::InvalidArgument, Reason::TooLarge, Outcome::NotApplied);
const MISMATCH: (Code, Reason, Outcome) =
    (Code::InvalidArgument, Reason::RequestMismatch, Outcome::NotApplied);

/// The only node: it leads all four shards.
struct Alone {
    cluster: Cluster,
    node: Raw,
}

impl Alone {
    async fn start() -> anyhow::Result<Self> {
        let cluster = Cluster::start(Options { nodes: 1, ..Options::beside() }).await?;
        cluster.led().await?;
        let endpoints = cluster.endpoints();
        let node = Raw::at(endpoints.first().context("it has an address")?)?;
        Ok(Self { cluster, node })
    }

    /// Sends a commit; again, while an earlier one of the same number is under way: a manager ends the parts of a transaction
    /// after it has told the client.
    async fn sends(
        &self,
        content: &v1::CommitRequest,
        id: Option<v1::RequestId>,
    ) -> anyhow::Result<Result<v1::CommitReply, Refused>> {
        let send = || async {
            match self.node.commit(content, id.clone()).await {
                Ok(Err(Refused { reason: Reason::Locked, .. })) => Err("it is under way".to_owned()),
                answered => Ok(answered),
            }
        };
        wait::until("the end of an earlier attempt", PATIENCE, send).await?
    }

    /// Sends a commit that must be decided.
    async fn decides(
        &self,
        content: &v1::CommitRequest,
        id: &v1::RequestId,
    ) -> anyhow::Result<v1::CommitReply> {
        let sent = self.sends(content, Some(id.clone())).await?;
        sent.map_err(|refused| anyhow::anyhow!("{id:?}: {refused:?}"))
    }

    /// Sends a commit that must be refused so.
    async fn refuses(
        &self,
        what: &str,
        content: &v1::CommitRequest,
        id: Option<v1::RequestId>,
        expected: (Code, Reason, Outcome),
    ) -> anyhow::Result<()> {
        let (code, reason, outcome) = expected;
        let sent = self.sends(content, id).await?;
        ensure!(sent == Err(Refused { code, reason, outcome }), "{what}: {expected:?}, but {sent:?}");
        Ok(())
    }

    /// What is stored are these rows, and nothing else; nothing is locked.
    async fn holds(&self, rows: &[(&str, &str)]) -> anyhow::Result<()> {
        let client = self.cluster.client()?;
        let stored = kv_e2e::ledger::everything(&client).await?;
        let stored: Vec<_> = stored.iter().map(|(key, value)| (key.as_ref(), value.as_ref())).collect();
        let expected: Vec<_> = rows.iter().map(|(key, value)| (key.as_bytes(), value.as_bytes())).collect();
        ensure!(stored == expected, "{rows:?}, but {stored:?}");
        let look = || async {
            let listed = client.list_txns().await.map_err(|cause| cause.to_string())?;
            let is_empty = listed.iter().all(|shard| {
                shard
                    .answer
                    .as_ref()
                    .is_ok_and(|answer| answer.prepared.is_empty() && answer.unfinished.is_empty())
            });
            if is_empty { Ok(()) } else { Err(format!("{listed:?}")) }
        };
        wait::until("nothing left", PATIENCE, look).await
    }
}

fn read(key: &str, seen: u64) -> v1::TxnRead {
    v1::TxnRead { key: key.to_owned().into(), seen }
}

fn scan(start: &str, end: Option<&str>, digest: usize) -> v1::TxnScan {
    let range = v1::KeyRange { start: start.to_owned().into(), end: end.map(|end| end.to_owned().into()) };
    v1::TxnScan { range: Some(range), digest: vec![7; digest].into() }
}

/// Contents that are none, and what each is refused as.
fn no_contents() -> Vec<(&'static str, v1::CommitRequest, (Code, Reason, Outcome))> {
    let good = || raw::writes(&[("a/1", "bad"), ("h/1", "bad")]);
    let reading = |reads: Vec<v1::TxnRead>| v1::CommitRequest { reads, ..good() };
    let scanning = |scans: Vec<v1::TxnScan>| v1::CommitRequest { scans, ..good() };
    let also = |key: Bytes, value: Option<Bytes>| {
        let mut content = good();
        content.writes.push(v1::TxnWrite { key, value });
        content
    };
    let many = (0..TXN_OPERATIONS_MAX - 1).map(|at| read(&format!("o/{at}"), 0)).collect();
    let large = |at: usize| v1::TxnWrite {
        key: format!("h/large/{at}").into(),
        value: Some(vec![0; VALUE_BYTES_MAX].into()),
    };
    let mut heavy = good();
    heavy.writes.extend((0..TXN_BYTES_MAX / VALUE_BYTES_MAX).map(large));
    // More than a node reads of any message.
    let mut unread = heavy.clone();
    unread.writes.extend((0..3).map(|at| large(TXN_BYTES_MAX / VALUE_BYTES_MAX + at)));
    let no_range = v1::TxnScan { range: None, ..scan("h", None, 16) };
    vec![
        ("no content", v1::CommitRequest::default(), INVALID),
        ("an operation too many", reading(many), TOO_LARGE),
        ("a few bytes too many", heavy, TOO_LARGE),
        ("more than is read", unread, TOO_LARGE),
        ("an empty key", also(Bytes::new(), None), INVALID),
        ("a long key", also(vec![b'h'; KEY_BYTES_MAX + 1].into(), None), TOO_LARGE),
        ("a large value", also("h/2".into(), Some(vec![0; VALUE_BYTES_MAX + 1].into())), TOO_LARGE),
        ("a key written twice", also("h/1".into(), None), INVALID),
        ("no anchor", v1::CommitRequest { anchor: Bytes::new(), ..good() }, INVALID),
        (
            "a long anchor",
            v1::CommitRequest { anchor: vec![b'a'; KEY_BYTES_MAX + 1].into(), ..good() },
            TOO_LARGE,
        ),
        ("an anchor that is no key of it", v1::CommitRequest { anchor: "a/2".into(), ..good() }, INVALID),
        ("a read of no key", reading(vec![read("", 0)]), INVALID),
        ("a read of a long key", reading(vec![read(&"o".repeat(KEY_BYTES_MAX + 1), 0)]), TOO_LARGE),
        ("a key read twice", reading(vec![read("o/1", 0), read("o/1", 0)]), INVALID),
        ("a scan of no range", scanning(vec![no_range]), INVALID),
        ("a scan without a digest", scanning(vec![scan("h", Some("i"), 0)]), INVALID),
        ("a scan with half a digest", scanning(vec![scan("h", Some("i"), 8)]), INVALID),
        ("a scan that runs back", scanning(vec![scan("i", Some("h"), 16)]), INVALID),
        ("a scan over two shards", scanning(vec![scan("h", Some("o"), 16)]), INVALID),
        (
            "two scans from one key",
            scanning(vec![scan("h", Some("i"), 16), scan("h", Some("j"), 16)]),
            INVALID,
        ),
        (
            "what was damaged",
            v1::CommitRequest { crc: Some(1), ..good() },
            (Code::DataLoss, Reason::Checksum, Outcome::Unknown),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_what_is_no_transaction_is_refused_by_name_and_changes_nothing() -> anyhow::Result<()> {
    let alone = Alone::start().await?;
    let session = Session::open(&alone.node, LONG).await?;
    for (what, content, expected) in no_contents() {
        alone.refuses(what, &content, Some(session.request(1, 1)), expected).await?;
    }
    let content = raw::writes(&[("a/1", "good"), ("h/1", "good")]);
    alone.refuses("no id", &content, None, INVALID).await?;
    let seconds = alone.cluster.client()?.get(Key::new("a")?).await?.header.cluster_time.seconds();
    alone.refuses("an id of no session", &content, Some(raw::timed(seconds)), INVALID).await?;
    let damaged = v1::RequestId { crc: Some(1), ..session.request(1, 1) };
    let expected = (Code::DataLoss, Reason::Checksum, Outcome::Unknown);
    alone.refuses("an id that was damaged", &content, Some(damaged), expected).await?;
    alone.holds(&[]).await?;
    // All of them had one id, which is as good as new.
    let decided = alone.decides(&content, &session.request(1, 1)).await?;
    ensure!(decided.aborted() == AbortReason::None, "{decided:?}");
    alone.holds(&[("a/1", "good"), ("h/1", "good")]).await?;
    alone.cluster.finish().await
}

/// What is known of a number once it is decided: it stands for its first content.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_stands_for_one_content_and_its_outcome_stands() -> anyhow::Result<()> {
    let alone = Alone::start().await?;
    let session = Session::open(&alone.node, LONG).await?;
    let stored = [("a/1", "first"), ("h/1", "first"), ("o/1", "first")];
    for (seq, first) in [
        (1, raw::writes(&[("a/1", "first")])),
        (2, raw::writes(&[("a/1", "first"), ("h/1", "first"), ("o/1", "first")])),
    ] {
        let id = session.request(seq, 1);
        let decided = alone.decides(&first, &id).await?;
        ensure!(decided.aborted() == AbortReason::None, "{decided:?}");
        let header = decided.header.context("it has a header")?;
        for (what, other) in [
            ("another value", raw::writes(&[("a/1", "second")])),
            ("another key of that shard", raw::writes(&[("a/2", "second")])),
            ("a further shard", raw::writes(&[("a/1", "first"), ("u/1", "second")])),
            ("its shard as a participant", raw::writes(&[("u/1", "second"), ("a/1", "first")])),
            (
                "participants that it has had",
                raw::writes(&[("u/1", "second"), ("a/2", "second"), ("h/2", "second")]),
            ),
        ] {
            alone.refuses(&format!("{seq}: {what}"), &other, Some(id.clone()), MISMATCH).await?;
        }
        if seq == 2 {
            for (what, other) in [
                ("a participant as its anchor", raw::writes(&[("h/1", "second"), ("a/1", "first")])),
                ("a participant alone", raw::writes(&[("h/1", "second")])),
                ("the same from another anchor", v1::CommitRequest { anchor: "o/1".into(), ..first.clone() }),
            ] {
                alone.refuses(&format!("{seq}: {what}"), &other, Some(id.clone()), MISMATCH).await?;
            }
        }
        let again = alone.decides(&first, &id).await?;
        let told = again.header.clone().context("it has a header")?;
        ensure!(again.aborted() == AbortReason::None && told.replayed, "{told:?}");
        ensure!(
            (told.shard, told.revision, &told.lamport) == (header.shard, header.revision, &header.lamport),
            "decided by {header:?}, and told {told:?}"
        );
        alone.holds(&stored[..if seq == 1 { 1 } else { 3 }]).await?;
    }
    // One that is aborted stays so, by the participant's no or by the anchor's own, and what would be valid is another one.
    for (seq, changed) in [(3, "h/1"), (4, "a/1")] {
        let id = session.request(seq, 1);
        let valid = raw::writes(&[("a/1", "third"), ("h/1", "third")]);
        let stale = v1::CommitRequest { reads: vec![read(changed, 1)], ..valid.clone() };
        let aborted = alone.decides(&stale, &id).await?;
        ensure!(aborted.aborted() == AbortReason::Conflict && aborted.conflict == changed, "{aborted:?}");
        let again = alone.decides(&stale, &id).await?;
        ensure!(again.aborted() == AbortReason::DecidedBefore, "{again:?}");
        alone.refuses("what would be valid", &valid, Some(id), MISMATCH).await?;
    }
    alone.holds(&stored).await?;
    alone.cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_a_session_that_is_over_is_refused_by_name() -> anyhow::Result<()> {
    use Outcome::{NotApplied, Unknown};
    let alone = Alone::start().await?;
    let session = Session::open(&alone.node, LONG).await?;
    let stale = (Code::FailedPrecondition, Reason::RequestStale, Unknown);
    let beyond = (Code::ResourceExhausted, Reason::WindowOverflow, NotApplied);
    let expired = (Code::FailedPrecondition, Reason::SessionExpired, Unknown);
    let both = |value: &str| raw::writes(&[("a/1", value), ("h/1", value)]);
    let one = |value: &str| raw::writes(&[("a/1", value)]);

    alone.decides(&both("kept"), &session.request(300, 300)).await?;
    for (nth, content) in (0..).zip([both("late"), one("late")]) {
        alone.refuses("a number below the floor", &content, Some(session.request(299, 299)), stale).await?;
        let far = session.request(300 + SESSION_WINDOW + nth, 0);
        alone.refuses("a number beyond the window", &content, Some(far.clone()), beyond).await?;
        // It is fenced, so that no part of it keeps its locks.
        let fenced = alone.decides(&content, &far).await?;
        ensure!(fenced.aborted() == AbortReason::DecidedBefore, "{fenced:?}");
    }
    // Only the participant's shard knows that it is below the floor: the anchor's can still decide that it is aborted.
    alone.decides(&raw::writes(&[("h/2", "kept")]), &session.request(400, 400)).await?;
    let aborted = alone.decides(&both("late"), &session.request(350, 300)).await?;
    ensure!(aborted.aborted() == AbortReason::DecidedBefore, "{aborted:?}");
    alone.holds(&[("a/1", "kept"), ("h/1", "kept"), ("h/2", "kept")]).await?;

    let brief = Session::open(&alone.node, Duration::from_secs(1)).await?;
    alone.decides(&both("brief"), &brief.request(1, 1)).await?;
    let look = || async {
        let request = v1::GetSessionRequest { context: None, session: brief.session };
        let found = alone.node.sessions().get_session(request).await;
        let found = found.map_err(|status| status.to_string())?.into_inner();
        let is_gone = found.session.is_none() && found.progress.is_empty();
        if is_gone { Ok(()) } else { Err(format!("{found:?}")) }
    };
    wait::until("the end of a session", PATIENCE, look).await?;
    let never = Session { session: brief.session + 1_000_000, ..brief };
    for content in [both("late"), one("late")] {
        alone.refuses("a late double", &content, Some(brief.request(1, 1)), expired).await?;
        alone.refuses("the next one", &content, Some(brief.request(2, 2)), expired).await?;
        alone.refuses("a session that never was", &content, Some(never.request(1, 1)), expired).await?;
    }
    for (what, id) in [
        ("no session", Session { session: 0, ..session }.request(1, 0)),
        ("no number", session.request(0, 0)),
    ] {
        alone.refuses(what, &one("late"), Some(id), INVALID).await?;
    }
    alone.holds(&[("a/1", "brief"), ("h/1", "brief"), ("h/2", "kept")]).await?;
    alone.cluster.finish().await
}
