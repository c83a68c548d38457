//! Golden scripts: commands applied one after the other, with what each did. `UPDATE_GOLDENFILES=1` rewrites them; read
//! the difference before you accept it.
//!
//! Beside the commands of [`line::Line`]: `time MS` says what time the leader stamps from now on; `as SESSION SEQ
//! [first=N] [lease=MS]` and `once SECONDS RANDOM` say which request the next line is an attempt of.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    unreachable_pub,
    dead_code,
    reason = "a test may panic; the harness is shared"
)]

#[path = "golden/line.rs"]
mod line;
#[path = "golden/show.rs"]
mod show;
#[path = "harness/table.rs"]
mod table;

use std::error::Error;

use kv_state::cluster::ClusterState;
use kv_state::{Command, gate, sessions, txn};
use kv_types::{ClusterTime, Key, Request, SessionId, SessionRequest, TimedId, Value};

use line::Line;
use table::{Replica, entry};

test_each_file::test_each_path! { in "crates/kv-state/testscripts" as golden => golden }

fn golden(path: &std::path::Path) {
    goldenscript::run(&mut Machine::default(), path).expect("the script's output changed");
}

#[derive(Default)]
struct Machine {
    replica: Replica,
    time: Option<ClusterTime>,
    request: Option<Request>,
}

impl goldenscript::Runner for Machine {
    type Command = Line;

    fn run(&mut self, line: &Line, _: &goldenscript::Context) -> Result<String, Box<dyn Error>> {
        let rows = &self.replica.table;
        match line {
            Line::Time { ms } => self.time = Some(line::time(*ms)?),
            Line::As { session, seq, first, lease } => {
                self.request = Some(Request::Session(SessionRequest {
                    session: SessionId::new(*session),
                    seq: *seq,
                    first_incomplete: first.unwrap_or(0),
                    lease_until: line::time(lease.unwrap_or(1_000_000))?,
                }));
            }
            Line::Once { seconds, random } => {
                let time = line::time(seconds * 1000)?;
                self.request = Some(Request::Timed(TimedId::new(time, u128::from(*random))));
            }
            Line::Outcome => {
                let request = self.request.take().ok_or("say whose outcome first")?;
                return Ok(show::found(&gate::outcome(rows, &request)?));
            }
            Line::Gate => return Ok(format!("time {}", gate::cluster_time(rows)?)),
            Line::Seen { after, limit } => {
                return Ok(format!("{:?}", gate::sessions_seen(rows, after.map(SessionId::new), *limit)?));
            }
            Line::Progress { session } => {
                return Ok(format!("{:?}", gate::session_progress(rows, SessionId::new(*session), 1000)?));
            }
            Line::Sessions => return self.sessions(),
            Line::Dead { sessions } => {
                let dead = sessions::dead(rows, self.replica.index, &line::batch(sessions)?)?;
                let names: Vec<_> = dead.sessions.iter().collect();
                return Ok(format!("{names:?} until {}", dead.until));
            }
            Line::Lock { key } => {
                return Ok(show::lock(txn::lock_of(rows, &Key::new(key.clone())?)?.as_ref()));
            }
            Line::Txns => return Ok(show::txns(&self.replica)),
            Line::Cluster => return Ok(show::cluster(&self.cluster())),
            Line::Fill { count } => return self.fill(*count),
            Line::FillRecords { count } => return self.fill_records(*count),
            Line::Rows => return Ok(show::rows(&self.replica)),
            command => return self.apply(command.command(&self.cluster())?),
        }
        Ok(String::new())
    }
}

impl Machine {
    fn apply(&mut self, command: Command) -> Result<String, Box<dyn Error>> {
        let entry = entry(command, self.request.take(), self.time);
        let applied = self.replica.apply(&entry)?;
        self.replica.check_hash();
        Ok(show::applied(self.replica.index, &applied))
    }

    fn cluster(&self) -> ClusterState {
        let row = self.replica.table.rows.get(&ClusterState::row_key());
        row.map_or_else(ClusterState::default, |row| {
            ClusterState::decode(&row.value).expect("the state machine wrote it")
        })
    }

    fn sessions(&self) -> Result<String, Box<dyn Error>> {
        let rows = &self.replica.table;
        let mut out = format!("{} sessions\n", sessions::count(rows)?);
        for (id, session) in sessions::list(rows, None, 100)? {
            let state = if session.closed { "closed" } else { "open" };
            let (ttl, lease) = (session.ttl, session.lease_until);
            out += &format!("  {id} {state} nonce={} ttl={ttl:?} lease_until={lease}\n", session.nonce);
            assert_eq!(sessions::session(rows, id)?, Some(session));
        }
        Ok(out)
    }

    fn fill(&mut self, count: u64) -> Result<String, Box<dyn Error>> {
        for n in 0..count {
            let key = Key::new(format!("k{n:05}"))?;
            self.apply(Command::Put { key, value: Value::default() })?;
        }
        Ok(format!("{count} keys"))
    }

    /// Writes one key under that many numbers after the one that `as` or `once` gave.
    fn fill_records(&mut self, count: u64) -> Result<String, Box<dyn Error>> {
        let first = self.request.take().ok_or("say whose records first")?;
        for n in 0..count {
            self.request = Some(match first {
                Request::Session(request) => {
                    Request::Session(SessionRequest { seq: request.seq + n, ..request })
                }
                Request::Timed(id) => Request::Timed(TimedId::from_raw(id.get() + u128::from(n))),
            });
            self.apply(Command::Put { key: Key::new("fill")?, value: Value::default() })?;
        }
        Ok(format!("{count} records"))
    }
}
