//! A range, page by page, each shard at one revision.

use std::sync::Arc;
use std::time::Instant;

use kv_proto::request;
use kv_proto::v1;
use kv_types::KeyRange;
use tokio::time::timeout_at;
use tonic::Streaming;

use crate::attempt::Caller;
use crate::error::{Error, Failure};
use crate::node::{cause_of, unary_failure};
use crate::reply::{Page, Source};

/// A scan under way; [`Scan::next_page`] drives it.
///
/// All rows of one shard are of one revision. A stream that breaks between two shards is opened again; one that breaks
/// within a shard ends the scan with [`Failure::ScanCut`], as going on would mix two revisions.
#[derive(Debug)]
pub struct Scan {
    caller: Arc<Caller>,
    /// What is left to read; `None` when done.
    rest: Option<request::Scan>,
    stream: Option<(Streaming<v1::ScanReply>, Source)>,
    /// Whether the stream has given a page.
    moved: bool,
    /// Whether a node was asked since the last failure.
    was_asked: bool,
    /// Whether rows of the shard that comes next have been handed out already.
    within_shard: bool,
}

impl Scan {
    pub(crate) fn new(caller: Arc<Caller>, scan: request::Scan) -> Self {
        Self { caller, rest: Some(scan), stream: None, moved: false, was_asked: false, within_shard: false }
    }

    /// The next page, or `None` when the range or the limit is exhausted. Each page has the client's whole timeout.
    ///
    /// # Errors
    /// [`Error`]; the scan cannot go on after one.
    pub async fn next_page(&mut self) -> Result<Option<Page>, Error> {
        let deadline = self.caller.deadline();
        let mut attempt = 0;
        self.caller.begins();
        while self.rest.is_some() {
            let failure = match self.step(deadline).await {
                Ok(Some(page)) => return Ok(Some(page)),
                Ok(None) => continue,
                Err(failure) => failure,
            };
            self.stream = None;
            attempt += 1;
            let was_asked = std::mem::take(&mut self.was_asked);
            if !self.caller.again_to_read(&failure, (was_asked, attempt), deadline).await {
                self.rest = None;
                return Err(Error::of_read(failure));
            }
        }
        Ok(None)
    }

    /// Receives one page, opening a stream if there is none; `None` if a stream came to its end.
    async fn step(&mut self, deadline: Instant) -> Result<Option<Page>, Failure> {
        if self.stream.is_none() {
            self.open(deadline).await?;
        }
        let Some((stream, source)) = &mut self.stream else { return Ok(None) };
        let wire = match timeout_at(deadline.into(), stream.message()).await {
            Ok(Ok(Some(wire))) => wire,
            Ok(Ok(None)) => {
                if !self.moved {
                    return Err(source.bad("it ended a scan without a page"));
                }
                // The server has nothing more to say here: what is left is another shard's.
                self.stream = None;
                self.within_shard = false;
                return Ok(None);
            }
            Ok(Err(status)) => {
                let failure = unary_failure(&source.endpoint, &status);
                return Err(self.cut(cause_of(&status)).unwrap_or(failure));
            }
            Err(_) => {
                let failure = Failure::TimedOut(source.endpoint.to_string());
                return Err(self.cut("no page in time".to_owned()).unwrap_or(failure));
            }
        };
        let page = source.page(wire)?;
        self.caller.token.seen(&page.header);
        self.advance(&page)?;
        self.moved = true;
        Ok(Some(page))
    }

    async fn open(&mut self, deadline: Instant) -> Result<(), Failure> {
        let Some(rest) = &self.rest else { return Ok(()) };
        let began = Instant::now();
        let (shard, node) = self.caller.route(rest.range.start(), deadline).await?;
        self.was_asked = true;
        let mut wire = v1::ScanRequest::from(rest.clone());
        wire.context = Some(self.caller.token.context());
        let mut client = node.kv();
        let failure = match timeout_at(deadline.into(), client.scan(wire)).await {
            Ok(Ok(response)) => {
                let source = Source { endpoint: Arc::clone(node.endpoint()), cluster: "".into() };
                self.stream = Some((response.into_inner(), source));
                self.moved = false;
                return Ok(());
            }
            Ok(Err(status)) => unary_failure(node.endpoint(), &status),
            Err(_) => Failure::TimedOut(node.endpoint().to_string()),
        };
        if matches!(failure, Failure::Unreachable { .. } | Failure::TimedOut(_)) {
            node.leave_alone();
        }
        self.caller.learn(shard, &failure, began, deadline).await;
        Err(failure)
    }

    /// Takes a page off what is left.
    fn advance(&mut self, page: &Page) -> Result<(), Failure> {
        let Some(rest) = &mut self.rest else { return Ok(()) };
        let rows = page.rows.len() as u64;
        let limit = rest.limit.map(|limit| limit.saturating_sub(rows));
        let Some(resume_key) = page.resume_key.clone().filter(|_| limit != Some(0)) else {
            self.rest = None;
            return Ok(());
        };
        let wrong = |cause: &str| Failure::BadReply {
            endpoint: page.header.leader.to_string(),
            cause: cause.to_owned(),
        };
        if resume_key <= rest.range.start() {
            return Err(wrong("the scan does not move on"));
        }
        let routes = self.caller.routes();
        self.within_shard =
            routes.of(&resume_key).is_none_or(|route| route.shard == page.header.shard) && rows > 0;
        rest.limit = limit;
        rest.range = KeyRange::new(resume_key, rest.range.end().cloned())
            .map_err(|_| wrong("the scan runs beyond its range"))?;
        Ok(())
    }

    /// The failure of a stream that broke within a shard; `None` if it broke between two.
    fn cut(&self, cause: String) -> Option<Failure> {
        let resume_key = self.rest.as_ref()?.range.start().clone();
        self.within_shard.then_some(Failure::ScanCut { resume_key, cause })
    }
}
