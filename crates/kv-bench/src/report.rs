//! What came of a run.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Largest latency a histogram tells apart, in microseconds; longer ones count as this.
const LATENCY_US_MAX: u64 = 600_000_000;

/// What all callers saw.
#[derive(Debug)]
pub(crate) struct Tally {
    latencies_us: Histogram<u32>,
    errors: u64,
    first_error: Option<String>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        let latencies_us =
            Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("1 us to 10 min with 3 digits is sound");
        Self { latencies_us, errors: 0, first_error: None }
    }

    pub(crate) fn succeeded(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(LATENCY_US_MAX);
        self.latencies_us.saturating_record(us.max(1));
    }

    pub(crate) fn failed(&mut self, error: &dyn fmt::Display) {
        self.errors += 1;
        if self.first_error.is_none() {
            self.first_error = Some(error.to_string());
        }
    }
}

/// What came of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    op: &'static str,
    clients: u32,
    conns: u32,
    value_size: usize,
    keys: u64,
    rate: Option<u64>,
    seconds: f64,
    ops: u64,
    ops_per_s: f64,
    p50_us: u64,
    p90_us: u64,
    p99_us: u64,
    p999_us: u64,
    max_us: u64,
    mean_us: f64,
    errors: u64,
    server_cpu_us_per_op: Option<f64>,
    client_cpu_us_per_op: Option<f64>,
    /// Of transactions: tries that were aborted, for each that was committed.
    aborts_per_op: Option<f64>,
    first_error: Option<String>,
}

impl Report {
    pub(crate) fn new(
        args: &crate::Args,
        tally: &Tally,
        elapsed: Duration,
        server_cpu: Option<Duration>,
        client_cpu: Option<Duration>,
    ) -> Self {
        let latencies = &tally.latencies_us;
        let ops = latencies.len();
        let quantile = |quantile| if ops == 0 { 0 } else { latencies.value_at_quantile(quantile) };
        let per_op = |cpu: Duration| cpu.as_secs_f64() * 1e6 / count(ops);
        Self {
            op: args.operation.word(),
            clients: args.clients,
            conns: args.conns,
            value_size: args.value_size,
            keys: args.keys,
            rate: args.rate,
            seconds: elapsed.as_secs_f64(),
            ops,
            ops_per_s: if ops == 0 { 0.0 } else { count(ops) / elapsed.as_secs_f64() },
            p50_us: quantile(0.5),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            max_us: latencies.max(),
            mean_us: latencies.mean(),
            errors: tally.errors,
            server_cpu_us_per_op: server_cpu.filter(|_| ops > 0).map(per_op),
            client_cpu_us_per_op: client_cpu.filter(|_| ops > 0).map(per_op),
            aborts_per_op: None,
            first_error: tally.first_error.clone(),
        }
    }

    /// The same of transactions that were tried so often.
    pub(crate) fn with_tries(mut self, tries: u64) -> Self {
        let aborts = tries.saturating_sub(self.ops + self.errors);
        self.aborts_per_op = (self.ops > 0).then(|| count(aborts) / count(self.ops));
        self
    }

    /// Whether operations were tried and none succeeded, or none even ended.
    pub fn all_failed(&self) -> bool {
        self.ops == 0
    }

    /// The first error any caller saw.
    pub fn first_error(&self) -> Option<&str> {
        self.first_error.as_deref()
    }
}

/// A count as a divisor.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
fn count(ops: u64) -> f64 {
    ops as f64
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "op={} clients={} ops/s={:.0} p50={}us p99={}us p999={}us errors={} server_cpu_us/op=",
            self.op, self.clients, self.ops_per_s, self.p50_us, self.p99_us, self.p999_us, self.errors
        )?;
        match self.server_cpu_us_per_op {
            Some(cpu) => write!(f, "{cpu:.1}")?,
            None => f.write_str("-")?,
        }
        match self.aborts_per_op {
            Some(aborts) => write!(f, " aborts/op={aborts:.2} max={}us", self.max_us),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn args() -> crate::Args {
        crate::Args::parse_from(["kvbench", "put", "--clients", "4"])
    }

    #[test]
    fn the_line_has_its_shape() {
        let mut tally = Tally::new();
        (1..=1000).for_each(|us| tally.succeeded(Duration::from_micros(us)));
        tally.failed(&"refused");
        let cpu = Some(Duration::from_millis(20));
        let report = Report::new(&args(), &tally, Duration::from_secs(2), cpu, None);
        assert_eq!(
            report.to_string(),
            "op=put clients=4 ops/s=500 p50=500us p99=990us p999=999us errors=1 server_cpu_us/op=20.0"
        );
        assert_eq!((report.first_error(), report.all_failed()), (Some("refused"), false));
    }

    #[test]
    fn nothing_done_is_a_failure_without_a_division_by_zero() {
        let mut tally = Tally::new();
        tally.failed(&"refused");
        let cpu = Some(Duration::from_millis(20));
        let report = Report::new(&args(), &tally, Duration::from_secs(2), cpu, cpu);
        assert!(report.all_failed());
        assert_eq!(
            report.to_string(),
            "op=put clients=4 ops/s=0 p50=0us p99=0us p999=0us errors=1 server_cpu_us/op=-"
        );
    }
}
