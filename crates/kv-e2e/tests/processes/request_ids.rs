//! Every request id that cannot be used is refused for a reason of its own, by a call of its own and in a pipeline.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use kv_client::{Code, v1};
use kv_e2e::raw::{self, Raw, Refused, Session, WAYS, Way};
use kv_e2e::{Cluster, Options, settings, wait};
use kv_types::Outcome;
use kv_types::limits::{REQUEST_AHEAD_MAX, REQUEST_RETENTION, SESSION_WINDOW};
use v1::Reason;
use v1::pipeline_request::Op;

const PATIENCE: Duration = Duration::from_secs(30);

/// A client's hour.
const LONG: Duration = Duration::from_secs(3600);

/// The only node.
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

    /// Sends a request that must be carried out.
    async fn does(&self, way: Way, op: Op, id: &v1::RequestId) -> anyhow::Result<raw::Done> {
        let sent = self.node.send(way, op, Some(id.clone())).await?;
        sent.map_err(|refused| anyhow::anyhow!("{id:?}: {refused:?}"))
    }

    /// Sends a request that must be refused so.
    async fn refuses(
        &self,
        what: &str,
        way: Way,
        (op, id): (Op, v1::RequestId),
        expected: (Code, Reason, Outcome),
    ) -> anyhow::Result<()> {
        let (code, reason, outcome) = expected;
        let sent = self.node.send(way, op, Some(id)).await?;
        ensure!(
            sent == Err(Refused { code, reason, outcome }),
            "{what}, {way:?}: {expected:?}, but {sent:?}"
        );
        Ok(())
    }

    /// The value of a key, and how often it was written.
    async fn row(&self, key: &'static str) -> anyhow::Result<Option<(Bytes, u64)>> {
        let row = self.cluster.client()?.get(kv_types::Key::new(key)?).await?.row;
        Ok(row.map(|row| (row.value.bytes().clone(), row.version)))
    }

    /// The cluster time of the first shard, in seconds.
    async fn seconds(&self) -> anyhow::Result<u64> {
        let got = self.cluster.client()?.get(kv_types::Key::new("a")?).await?;
        Ok(got.header.cluster_time.seconds())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_cannot_be_used_is_refused_by_name_and_changes_nothing() -> anyhow::Result<()> {
    use Outcome::{NotApplied, Unknown};
    let alone = Alone::start().await?;
    for way in WAYS {
        let session = Session::open(&alone.node, LONG).await?;
        let put = |value: &str| raw::put("a", value);
        alone.does(way, put("kept"), &session.request(300, 300)).await?;

        let other = (put("other"), session.request(300, 300));
        let expected = (Code::InvalidArgument, Reason::RequestMismatch, NotApplied);
        alone.refuses("a number used with other content", way, other, expected).await?;
        let other = (raw::incr("a", 1), session.request(300, 300));
        alone.refuses("a number used for another command", way, other, expected).await?;

        let below = (put("other"), session.request(299, 299));
        let expected = (Code::FailedPrecondition, Reason::RequestStale, Unknown);
        alone.refuses("a number below the floor", way, below, expected).await?;

        let beyond = (put("other"), session.request(300 + SESSION_WINDOW, 0));
        let expected = (Code::ResourceExhausted, Reason::WindowOverflow, NotApplied);
        alone.refuses("a number beyond the window", way, beyond, expected).await?;

        let now = alone.seconds().await?;
        let early = (put("other"), raw::timed(now + 2 * REQUEST_AHEAD_MAX.as_secs()));
        let expected = (Code::InvalidArgument, Reason::RequestTooEarly, NotApplied);
        alone.refuses("an id of a time to come", way, early, expected).await?;

        let malformed = (Code::InvalidArgument, Reason::Invalid, NotApplied);
        for len in [0, 15, 17, 4096] {
            let sized = (put("other"), raw::sized(vec![0; len]));
            alone.refuses("an id of the wrong size", way, sized, malformed).await?;
        }
        let nobody = Session { session: 0, ..session };
        for (what, id) in [
            ("no id", v1::RequestId::default()),
            ("no session", nobody.request(1, 0)),
            ("no number", session.request(0, 0)),
            ("a number that is none", session.request(u64::MAX, 0)),
            ("a floor that is none", session.request(301, u64::MAX)),
        ] {
            alone.refuses(what, way, (put("other"), id), malformed).await?;
        }
        let damaged = v1::RequestId { crc: Some(1), ..session.request(301, 300) };
        let expected = (Code::DataLoss, Reason::Checksum, Unknown);
        alone.refuses("an id that was damaged", way, (put("other"), damaged), expected).await?;

        // The session goes on as if nothing had been sent.
        ensure!(alone.does(way, put("kept"), &session.request(300, 300)).await?.replayed, "it is kept");
        alone.does(way, put("kept"), &session.request(301, 300)).await?;
    }
    for settle in [false, true] {
        let nameless = v1::GetOutcomeRequest { context: None, key: "a".into(), settle };
        let asked = alone.node.kv().get_outcome(nameless).await.err().context("no id is asked about")?;
        ensure!(asked.code() == Code::InvalidArgument && asked.message().contains("request_id"), "{asked:?}");
    }
    ensure!(alone.row("a").await? == Some(("kept".into(), 4)), "{:?}", alone.row("a").await?);
    alone.cluster.finish().await
}

/// A shard that has not heard from a session for long takes a number to settle only from whoever knows how far the session is.
#[tokio::test(flavor = "multi_thread")]
async fn a_number_far_ahead_is_settled_by_its_own_client() -> anyhow::Result<()> {
    let alone = Alone::start().await?;
    let session = Session::open(&alone.node, LONG).await?;
    let settle = |first_incomplete| {
        let request_id = Some(session.request(700, first_incomplete));
        let context = Some(v1::RequestContext { request_id, ..v1::RequestContext::default() });
        let asked = v1::GetOutcomeRequest { context, key: "h".into(), settle: true };
        let mut kv = alone.node.kv();
        async move { kv.get_outcome(asked).await }
    };
    let refused = settle(0).await.err().context("700 is beyond the window from 0")?;
    ensure!(refused.code() == Code::ResourceExhausted && refused.message().contains("256"), "{refused:?}");
    ensure!(settle(690).await?.into_inner().state() == v1::RequestState::Settled, "it is settled");
    let late = (raw::put("h", "late"), session.request(700, 690));
    let expected = (Code::FailedPrecondition, Reason::RequestSettled, Outcome::NotApplied);
    alone.refuses("what was settled", WAYS[0], late, expected).await?;
    alone.does(WAYS[0], raw::put("h", "next"), &session.request(701, 690)).await?;
    ensure!(alone.row("h").await? == Some(("next".into(), 1)), "{:?}", alone.row("h").await?);
    alone.cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_has_ended_is_refused_and_its_late_writes_are_not_repeated() -> anyhow::Result<()> {
    let alone = Alone::start().await?;
    let session = Session::open(&alone.node, Duration::from_secs(1)).await?;
    let closed = Session::open(&alone.node, Duration::from_secs(1)).await?;
    for (sum, session) in [(1, &session), (2, &closed)] {
        let done = alone.does(Way::Unary, raw::incr("a", 1), &session.request(1, 1)).await?;
        ensure!(done.sum == Some(sum), "{done:?}");
    }
    let close = v1::CloseSessionRequest { context: None, session: closed.session };
    alone.node.sessions().close_session(close.clone()).await?;
    // Closing one that is closed is no mistake.
    alone.node.sessions().close_session(close).await?;
    for Session { session, .. } in [session, closed] {
        let look = || async {
            let request = v1::GetSessionRequest { context: None, session };
            let found = alone.node.sessions().get_session(request).await;
            let found = found.map_err(|status| status.to_string())?.into_inner();
            let is_gone = found.session.is_none() && found.progress.is_empty();
            if is_gone { Ok(()) } else { Err(format!("{found:?}")) }
        };
        wait::until("the end of a session", PATIENCE, look).await?;
    }
    let expected = (Code::FailedPrecondition, Reason::SessionExpired, Outcome::Unknown);
    for (session, way) in [session, closed].iter().zip(WAYS).chain([closed, session].iter().zip(WAYS)) {
        let late = (raw::incr("a", 1), session.request(1, 1));
        alone.refuses("a late double", way, late, expected).await?;
        let next = (raw::incr("a", 1), session.request(2, 2));
        alone.refuses("the next write", way, next, expected).await?;
    }
    let never = Session { session: session.session + 1_000_000, ..session };
    alone
        .refuses("a session that never was", Way::Unary, (raw::incr("a", 1), never.request(1, 1)), expected)
        .await?;
    let renewal = v1::RenewSessionsRequest { context: None, sessions: vec![session.session, never.session] };
    let renewed = alone.node.sessions().renew_sessions(renewal).await?.into_inner().sessions;
    ensure!(renewed.len() == 2 && renewed.iter().all(|one| one.lease_until_ms.is_none()), "{renewed:?}");
    ensure!(alone.row("a").await? == Some(("2".into(), 2)), "{:?}", alone.row("a").await?);
    alone.cluster.finish().await
}

/// Of the clocks of a cluster none can be set forward: to see an id grow too old takes as long as it says. Without
/// `QUORATE_RETENTION=1` the test shows only that a younger one is good.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_is_too_old_is_refused() -> anyhow::Result<()> {
    let waits = settings::number("QUORATE_RETENTION", 0)? > 0;
    let alone = Alone::start().await?;
    let (first, id) = (raw::incr("a", 1), raw::timed(alone.seconds().await?));
    let done = alone.does(Way::Unary, first.clone(), &id).await?;
    let again = alone.does(Way::Pipelined, first.clone(), &id).await?;
    ensure!(again == raw::Done { replayed: true, ..done }, "{done:?}, {again:?}");
    if waits {
        let limit = REQUEST_RETENTION + Duration::from_secs(60);
        let look = || async {
            let seconds = alone.seconds().await.map_err(|cause| cause.to_string())?;
            // The record goes with an entry after its time, and the time is told by entries.
            let moved = alone.node.send(Way::Unary, raw::incr("b", 1), None).await;
            moved.map_err(|cause| cause.to_string())?.map_err(|refused| format!("{refused:?}"))?;
            let is_over = seconds > REQUEST_RETENTION.as_secs() + 10;
            if is_over { Ok(()) } else { Err(format!("{seconds} s")) }
        };
        wait::until("the end of the retention", limit, look).await?;
        let expected = (Code::FailedPrecondition, Reason::RequestTooOld, Outcome::Unknown);
        for way in WAYS {
            alone.refuses("a late double", way, (first.clone(), id.clone()), expected).await?;
        }
    }
    ensure!(alone.row("a").await? == Some(("1".into(), 1)), "{:?}", alone.row("a").await?);
    alone.cluster.finish().await
}
