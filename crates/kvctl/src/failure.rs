//! What went wrong: one line on standard error, and an exit code.

use std::io::{self, Write as _};
use std::time::Duration;

use kv_client::{AbortCause, Code, Error, RangeError, TxnError};
use kv_types::{Outcome, RequestId};
use serde_json::json;

use crate::args::Format;
use crate::bytes_text::{Encoding, harmless, plain_word};

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0.
    Ok,
    /// 1: anything without a code of its own.
    Error,
    /// 2: the command line makes no sense.
    Usage,
    /// 3: a key is absent.
    Absent,
    /// 4: a write may or may not have happened.
    Unknown,
    /// 5: the key was not as expected.
    CompareFailed,
    /// 6: nothing happened, and the same command may well succeed later.
    WorthARetry,
    /// 7: a transaction was aborted.
    Aborted,
    /// 10: a history contradicts the promises.
    Violation,
    /// 11: it is not known whether a history does.
    Undecided,
    /// 12: a history shows nothing.
    NotExercised,
}

/// The reason of a failure to write the output.
const OUTPUT: &str = "output";

/// How far a deletion of many keys came.
#[derive(Debug)]
struct PartDone {
    deleted: u64,
    /// Where the rest begins.
    resume_key: Vec<u8>,
}

/// A failed command.
#[derive(Debug)]
pub(crate) struct CommandError {
    pub(crate) exit: Exit,
    message: String,
    code: String,
    reason: String,
    outcome: Outcome,
    hint: Option<Box<(u64, String)>>,
    /// What was done before it failed.
    done: Option<Box<PartDone>>,
    /// What named a write whose outcome is unknown.
    request: Option<Box<RequestId>>,
}

impl CommandError {
    /// A failure that this program found itself; nothing happened.
    pub(crate) fn own(exit: Exit, code: &str, reason: &str, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            code: code.to_owned(),
            reason: reason.to_owned(),
            outcome: Outcome::NotApplied,
            hint: None,
            done: None,
            request: None,
        }
    }

    /// An argument that cannot be used.
    pub(crate) fn usage(message: impl std::fmt::Display) -> Self {
        Self::own(Exit::Usage, "INVALID_ARGUMENT", "usage", message.to_string())
    }

    /// A failure after which it is not known whether anything happened.
    pub(crate) fn unknown(code: &str, reason: &str, message: impl Into<String>) -> Self {
        Self { outcome: Outcome::Unknown, ..Self::own(Exit::Unknown, code, reason, message) }
    }

    /// The command took longer than its timeout, and may have done something if it `acts`.
    pub(crate) fn timed_out(acts: bool, timeout: Duration) -> Self {
        let (code, reason) = ("DEADLINE_EXCEEDED", "deadline");
        let message = format!("the command was not done within its timeout ({timeout:?}): see --timeout");
        match acts {
            true => Self::unknown(code, reason, message + "; it may have happened"),
            false => Self::own(Exit::WorthARetry, code, reason, message),
        }
    }

    /// The same failure, of a command that acts: if it could not say what it had done, it may have done it.
    pub(crate) fn of_one_that_acts(self) -> Self {
        if self.reason != OUTPUT {
            return self;
        }
        let message = self.message + "; what was asked for may have happened";
        Self { exit: Exit::Unknown, outcome: Outcome::Unknown, message, ..self }
    }

    /// The same failure, of a question what became of a request: of that it says nothing.
    pub(crate) fn of_a_question(self) -> Self {
        let exit = if self.exit == Exit::WorthARetry { Exit::Unknown } else { self.exit };
        Self { exit, outcome: Outcome::Unknown, ..self }
    }

    /// The same failure, of one of several.
    pub(crate) fn about(self, what: &str) -> Self {
        Self { message: format!("{what}: {}", self.message), ..self }
    }

    /// Whether it happened.
    pub(crate) fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// One word for programs.
    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    /// What named a write whose outcome is unknown.
    pub(crate) fn request(&self) -> Option<&RequestId> {
        self.request.as_deref()
    }

    /// What went wrong, for people.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Writes the failure to standard error.
    pub(crate) fn report(&self, format: Format) {
        let text = match format {
            Format::Json => self.to_json().to_string(),
            Format::Plain | Format::Table => format!("error: {}", harmless(&self.message)),
        };
        // If standard error is gone there is nobody left to tell.
        let _ = writeln!(io::stderr(), "{text}");
    }

    fn to_json(&self) -> serde_json::Value {
        let hint = self.hint.as_ref().map(|hint| json!({ "node": hint.0, "addr": hint.1 }));
        let mut error = json!({
            "code": self.code,
            "reason": self.reason,
            "outcome": outcome_word(self.outcome),
            "hint": hint,
            "message": self.message,
        });
        if let Some(fields) = error.as_object_mut() {
            if let Some(request) = &self.request {
                fields.insert("request_id".to_owned(), request.to_string().into());
            }
            if let Some(done) = &self.done {
                fields.insert("deleted".to_owned(), done.deleted.into());
                fields
                    .insert("resume_key_base64".to_owned(), Encoding::Base64.write(&done.resume_key).into());
            }
        }
        json!({ "error": error })
    }
}

/// The word for an outcome in json.
pub(crate) fn outcome_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::NotApplied => "not_applied",
        Outcome::Unknown => "unknown",
    }
}

impl From<Error> for CommandError {
    fn from(error: Error) -> Self {
        let exit = match error.outcome {
            Outcome::Unknown => Exit::Unknown,
            Outcome::NotApplied if error.is_worth_a_retry() => Exit::WorthARetry,
            Outcome::NotApplied => Exit::Error,
        };
        let request = error.request.filter(|_| error.outcome == Outcome::Unknown);
        let doubt = match (error.outcome, request) {
            (Outcome::Unknown, Some(id)) => format!("; it may have happened: see `kvctl outcome {id}`"),
            (Outcome::Unknown, None) => "; it may have happened".to_owned(),
            (Outcome::NotApplied, _) => String::new(),
        };
        Self {
            exit,
            message: format!("{error}{doubt}"),
            code: code_name(error.failure.code()),
            reason: error.failure.reason(),
            outcome: error.outcome,
            hint: error.hint().map(|hint| Box::new((hint.node.get(), hint.client_addr.clone()))),
            done: None,
            request: request.map(Box::new),
        }
    }
}

impl From<TxnError> for CommandError {
    fn from(error: TxnError) -> Self {
        let text = error.to_string();
        match error {
            TxnError::Aborted(aborted) => {
                let reason = match aborted.cause {
                    AbortCause::Conflict => "conflict",
                    AbortCause::Locked => "locked",
                    AbortCause::Unreachable => "unreachable",
                    AbortCause::DecidedBefore => "decided_before",
                };
                Self::own(Exit::Aborted, "ABORTED", reason, text)
            }
            TxnError::Limit(_) => Self::own(Exit::Error, "INVALID_ARGUMENT", "too_large", text),
            TxnError::Failed(error) => error.into(),
            TxnError::Unknown { anchor, source } => {
                let ask = source.request.map(|id| match plain_word(anchor.as_ref()) {
                    Some(key) => format!("; see `kvctl outcome {id} --key {key}`"),
                    None => format!(
                        "; see `kvctl --hex outcome {id} --key {}`",
                        Encoding::Hex.write(anchor.as_ref())
                    ),
                });
                Self { message: text + &ask.unwrap_or_default(), ..Self::from(*source) }
            }
        }
    }
}

impl From<RangeError> for CommandError {
    fn from(error: RangeError) -> Self {
        let RangeError { deleted, resume_key, source } = error;
        let cause = Self::from(source);
        // Nothing of the rest happened; of the whole that is not true any more.
        let (exit, outcome) = match (deleted, cause.exit) {
            (1.., Exit::WorthARetry | Exit::Error) => (Exit::Unknown, Outcome::Unknown),
            (_, exit) => (exit, cause.outcome),
        };
        let message = format!(
            "{} (after {deleted} keys were deleted: the same command deletes the rest)",
            cause.message
        );
        Self {
            exit,
            outcome,
            message,
            done: Some(Box::new(PartDone { deleted, resume_key: resume_key.to_vec() })),
            ..cause
        }
    }
}

impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        Self::own(Exit::Error, "INTERNAL", OUTPUT, format!("the output could not be written: {error}"))
    }
}

/// A gRPC code as its specification writes it.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_client::{ApiError, Failure};
    use kv_types::ShardId;

    fn error(failure: Failure, outcome: Outcome) -> CommandError {
        Error { failure, outcome, request: None }.into()
    }

    #[test]
    fn exit_codes_follow_the_outcome() {
        let shard = ShardId::new(1);
        let broken = || Failure::Broken("h:1".into());
        assert_eq!(error(broken(), Outcome::Unknown).exit, Exit::Unknown);
        assert_eq!(error(broken(), Outcome::NotApplied).exit, Exit::WorthARetry);
        assert_eq!(error(ApiError::NoLeader(shard).into(), Outcome::NotApplied).exit, Exit::WorthARetry);
        let quota = ApiError::Quota("full".into());
        assert_eq!(error(quota.into(), Outcome::NotApplied).exit, Exit::WorthARetry);
        let invalid = ApiError::Invalid("no".into());
        assert_eq!(error(invalid.into(), Outcome::NotApplied).exit, Exit::Error);
    }

    #[test]
    fn an_unknown_transaction_says_how_to_find_out() {
        let ends = |anchor: &'static [u8]| {
            let request = "ses5/17".parse().ok();
            let failure = Failure::TimedOut("h:1".into());
            let source = Box::new(Error { failure, outcome: Outcome::Unknown, request });
            let anchor = kv_types::Key::new(anchor).unwrap();
            let error = CommandError::from(TxnError::Unknown { anchor, source });
            assert_eq!((error.exit, error.outcome), (Exit::Unknown, Outcome::Unknown));
            assert_eq!(error.request().unwrap().to_string(), "ses5/17");
            error.message.split_once("; ").unwrap().1.to_owned()
        };
        assert_eq!(ends(b"a/1"), "see `kvctl outcome ses5/17 --key a/1`");
        assert_eq!(ends(b"a b"), "see `kvctl --hex outcome ses5/17 --key 612062`");
        assert_eq!(ends(b"-a"), "see `kvctl --hex outcome ses5/17 --key 2d61`");
    }

    #[test]
    fn what_could_not_be_said_may_have_happened() {
        let full = || CommandError::from(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!((full().exit, full().outcome), (Exit::Error, Outcome::NotApplied));
        let acted = full().of_one_that_acts();
        assert_eq!((acted.exit, acted.outcome), (Exit::Unknown, Outcome::Unknown));
        let refused =
            error(ApiError::NoLeader(ShardId::new(2)).into(), Outcome::NotApplied).of_one_that_acts();
        assert_eq!((refused.exit, refused.outcome), (Exit::WorthARetry, Outcome::NotApplied));
    }

    #[test]
    fn a_question_without_an_answer_says_nothing_of_the_request() {
        let unreachable = Failure::Unreachable { endpoint: "h:1".into(), cause: "refused".into() };
        let asked = error(unreachable, Outcome::NotApplied).of_a_question();
        assert_eq!((asked.exit, asked.outcome), (Exit::Unknown, Outcome::Unknown));
        let invalid = error(ApiError::Invalid("no".into()).into(), Outcome::NotApplied).of_a_question();
        assert_eq!((invalid.exit, invalid.outcome), (Exit::Error, Outcome::Unknown));
    }

    #[test]
    fn a_deletion_that_stopped_on_its_way_says_where() {
        let stopped = |deleted| {
            let failure = ApiError::NoLeader(ShardId::new(2)).into();
            let source = Error { failure, outcome: Outcome::NotApplied, request: None };
            CommandError::from(RangeError { deleted, resume_key: "k/7".into(), source })
        };
        assert_eq!((stopped(0).exit, stopped(0).outcome), (Exit::WorthARetry, Outcome::NotApplied));
        let stopped = stopped(1024);
        assert_eq!((stopped.exit, stopped.outcome), (Exit::Unknown, Outcome::Unknown));
        let json = stopped.to_json();
        assert_eq!(
            (&json["error"]["deleted"], &json["error"]["resume_key_base64"]),
            (&1024.into(), &"ay83".into())
        );
    }

    #[test]
    fn json_errors_have_their_shape() {
        let failed = error(ApiError::NoLeader(ShardId::new(2)).into(), Outcome::NotApplied);
        let text = failed.to_json().to_string();
        assert_eq!(
            text,
            r#"{"error":{"code":"UNAVAILABLE","hint":null,"message":"s2 has no leader known to this node","outcome":"not_applied","reason":"no_leader"}}"#
        );
    }

    #[test]
    fn codes_are_spelt_as_in_the_specification() {
        assert_eq!(code_name(Code::ResourceExhausted), "RESOURCE_EXHAUSTED");
        assert_eq!(code_name(Code::Ok), "OK");
    }
}
