//! What clients do meanwhile.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::error::Flaw;
use super::table::{self, Reader, Value};
use crate::limits::{CLIENTS_MAX, KEYS_MAX, THINK_MAX, VALUE_BYTES_MAX, WORKLOAD_MAX};
use crate::quantity::ParseError;

/// What clients do meanwhile.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Workload {
    /// On what, and how it is checked.
    pub kind: WorkloadKind,
    /// How many there are.
    pub clients: u64,
    /// On how many keys.
    pub keys: u64,
    /// The pause of a client between two calls.
    pub think: Duration,
    /// How long it lasts, and the drill with it.
    pub duration: Duration,
    /// How long the values of [`WorkloadKind::Set`] are, in bytes: so much goes into logs and onto disks. Other kinds write
    /// what they need.
    pub value_bytes: u64,
}

/// What clients work on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum WorkloadKind {
    /// Keys that are written, read and compared.
    Register,
    /// Numbers that are counted up.
    Counter,
    /// Accounts between which transactions move money.
    Bank,
    /// Lists to which transactions append.
    Append,
    /// A set to which elements are added.
    Set,
    /// A lock.
    Lock,
}

impl Workload {
    pub(super) const DEFAULT: Self = Self {
        kind: WorkloadKind::Register,
        clients: 8,
        keys: 4,
        think: Duration::from_millis(5),
        duration: Duration::from_secs(15),
        value_bytes: 1,
    };

    pub(super) fn read(value: &Value<'_>) -> Result<Self, Flaw> {
        let names = ["kind", "clients", "keys", "think", "duration", "value-bytes"];
        let reader = Reader::of(value, "a workload", &names)?;
        let default = Self::DEFAULT;
        let clients = reader.read("clients", |value| table::integer(value, 1..=CLIENTS_MAX))?;
        let keys = reader.read("keys", |value| table::integer(value, 1..=KEYS_MAX))?;
        let think = reader.read("think", |value| table::duration(value, Duration::ZERO..=THINK_MAX))?;
        let duration = Duration::from_secs(1)..=WORKLOAD_MAX;
        let duration = reader.read("duration", |value| table::duration(value, duration))?;
        let value_bytes = reader.read("value-bytes", |value| table::integer(value, 1..=VALUE_BYTES_MAX))?;
        Ok(Self {
            kind: reader.read("kind", table::parsed)?.unwrap_or(default.kind),
            clients: clients.unwrap_or(default.clients),
            keys: keys.unwrap_or(default.keys),
            think: think.unwrap_or(default.think),
            duration: duration.unwrap_or(default.duration),
            value_bytes: value_bytes.unwrap_or(default.value_bytes),
        })
    }
}

impl WorkloadKind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Register, Self::Counter, Self::Bank, Self::Append, Self::Set, Self::Lock];

    /// Its name in text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Counter => "counter",
            Self::Bank => "bank",
            Self::Append => "append",
            Self::Set => "set",
            Self::Lock => "lock",
        }
    }
}

impl FromStr for WorkloadKind {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let expected = "register, counter, bank, append, set or lock is expected";
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| ParseError::new(text, "workload", expected))
    }
}

impl fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
