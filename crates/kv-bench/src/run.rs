//! A run from its first connection to its report.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kv_client::{Client, Config, RequestIds, Tries};
use tokio::task::LocalSet;
use tokio::time::sleep_until;

use crate::args::{Args, Ids, Operation};
use crate::cpu;
use crate::load::{Caller, Plan, due};
use crate::report::{Report, Tally};

/// How late a sleep may end without the callers being to blame: an operation due just before the window's end is begun.
const TIMER_SLACK: Duration = Duration::from_millis(50);

/// When the load is counted: from the end of the warm-up to the end.
#[derive(Debug, Clone, Copy)]
struct Window {
    start: Instant,
    counted_from: Instant,
    end: Instant,
    rate: Option<u64>,
}

/// Runs the load that `args` describe. To be called on a current-thread runtime.
///
/// # Errors
/// If no node can be reached, preloading fails, or a server's CPU time cannot be read.
pub async fn run(args: Args) -> anyhow::Result<Report> {
    cpu::of(&args.pids)?;
    let plan = Plan::new(&args);
    let clients = connect(&args).await?;
    let mut callers = (0..args.clients)
        .zip(clients.iter().cycle())
        .map(|(_, client)| Caller::new(plan.clone(), client.clone()))
        .collect::<Vec<_>>();
    if args.preload {
        callers = preload(callers, u64::from(args.clients)).await?;
    }
    let start = Instant::now();
    let counted_from = start + Duration::from_secs(args.warmup);
    let end = counted_from + Duration::from_secs(args.secs);
    let window = Window { start, counted_from, end, rate: args.rate };
    LocalSet::new().run_until(measure(&args, &plan, window, callers)).await
}

async fn connect(args: &Args) -> anyhow::Result<Vec<Client>> {
    let mut clients = Vec::new();
    for _ in 0..args.conns {
        let mut config = Config::new(args.endpoints.iter().map(|endpoint| endpoint.trim()));
        config.timeout = Duration::from_millis(args.timeout_ms);
        config.transact = Tries { max: u32::MAX, within: config.timeout };
        config.request_ids = match args.request_ids {
            Ids::Sessions => config.request_ids,
            Ids::Timed => RequestIds::Timed,
            Ids::None => RequestIds::None,
        };
        clients.push(Client::connect(config).await.context("the cluster cannot be reached")?);
    }
    Ok(clients)
}

async fn preload(callers: Vec<Caller>, step: u64) -> anyhow::Result<Vec<Caller>> {
    let local = LocalSet::new();
    let tasks: Vec<_> = (0..step)
        .zip(callers)
        .map(|(first, mut caller)| {
            local.spawn_local(async move { caller.preload(first, step).await.map(|()| caller) })
        })
        .collect();
    local
        .run_until(async {
            let mut callers = Vec::with_capacity(tasks.len());
            for task in tasks {
                callers.push(task.await?.context("a key could not be preloaded")?);
            }
            Ok(callers)
        })
        .await
}

async fn measure(args: &Args, plan: &Plan, window: Window, callers: Vec<Caller>) -> anyhow::Result<Report> {
    // One for all: a histogram takes 90 KiB, and 20,000 callers would have one each.
    let tally = Rc::new(RefCell::new(Tally::new()));
    let tasks: Vec<_> = callers
        .into_iter()
        .map(|caller| tokio::task::spawn_local(work(plan.clone(), window, caller, Rc::clone(&tally))))
        .collect();
    let own = [std::process::id()];
    sleep_until(window.counted_from.into()).await;
    let (server_before, own_before) = (cpu::of(&args.pids)?, cpu::of(&own)?);
    let (began, tries) = (Instant::now(), plan.tries());
    sleep_until(window.end.into()).await;
    let (server_after, own_after) = (cpu::of(&args.pids)?, cpu::of(&own)?);
    let (elapsed, tries) = (began.elapsed(), plan.tries() - tries);
    for task in tasks {
        task.await?;
    }
    let server_cpu = (!args.pids.is_empty()).then(|| server_after.saturating_sub(server_before));
    let own_cpu = own_after.saturating_sub(own_before);
    let report = Report::new(args, &tally.borrow(), elapsed, server_cpu, Some(own_cpu));
    Ok(if args.operation == Operation::Txn { report.with_tries(tries) } else { report })
}

/// One caller's work, to the end of the window.
async fn work(plan: Plan, window: Window, caller: Caller, tally: Rc<RefCell<Tally>>) {
    match window.rate {
        None => closed_loop(window, caller, &tally).await,
        Some(rate) => open_loop(&plan, window, rate, caller, &tally).await,
    }
}

/// One operation after the other. Counted is what ended within the window, whenever it began: so the rate is that of
/// the window alone.
async fn closed_loop(window: Window, mut caller: Caller, tally: &RefCell<Tally>) {
    loop {
        let began = Instant::now();
        if began >= window.end {
            return;
        }
        let result = caller.operate().await;
        let ended = Instant::now();
        match result {
            _ if ended < window.counted_from => {}
            Ok(()) if ended <= window.end => {
                tally.borrow_mut().succeeded(ended.saturating_duration_since(began))
            }
            Ok(()) => {}
            Err(error) => tally.borrow_mut().failed(&format_args!("{error:#}")),
        }
    }
}

/// Operations when they are due. Counted is what was due within the window, however long it took: to leave out those
/// that end late would be to leave out the slow ones.
async fn open_loop(plan: &Plan, window: Window, rate: u64, mut caller: Caller, tally: &RefCell<Tally>) {
    loop {
        let intended = window.start + due(plan.next_number(), rate);
        if intended >= window.end {
            return;
        }
        if intended > Instant::now() {
            sleep_until(intended.into()).await;
        }
        let counted = intended >= window.counted_from;
        if Instant::now() >= window.end + TIMER_SLACK {
            // All callers were busy for the rest of the window.
            if counted {
                tally.borrow_mut().failed(&"an operation was not begun before the end");
            }
            continue;
        }
        match caller.operate().await {
            _ if !counted => {}
            Ok(()) => tally.borrow_mut().succeeded(intended.elapsed()),
            Err(error) => tally.borrow_mut().failed(&format_args!("{error:#}")),
        }
    }
}
