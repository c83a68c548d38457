//! Waits for several futures at once, in the caller's task.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

enum Slot<F: Future> {
    Running(Pin<Box<F>>),
    Done(F::Output),
}

/// Runs all futures to their end; the outputs are in their order. For a handful of futures: each wake polls them all.
pub(crate) async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output>
where
    F::Output: Unpin,
{
    let mut slots: Vec<Slot<F>> = futures.into_iter().map(|future| Slot::Running(Box::pin(future))).collect();
    poll_fn(|cx| {
        let mut pending = false;
        for slot in &mut slots {
            if let Slot::Running(future) = slot {
                match future.as_mut().poll(cx) {
                    Poll::Ready(output) => *slot = Slot::Done(output),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    slots
        .into_iter()
        .filter_map(|slot| match slot {
            Slot::Done(output) => Some(output),
            Slot::Running(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn outputs_keep_their_order() {
        let (tx, rx) = tokio::sync::oneshot::channel();
        let mut tx = Some(tx);
        let mut rx = Some(rx);
        let futures = (0..2).map(|i| {
            let (tx, rx) = if i == 0 { (None, rx.take()) } else { (tx.take(), None) };
            async move {
                if let Some(rx) = rx {
                    rx.await.unwrap();
                }
                if let Some(tx) = tx {
                    tx.send(()).unwrap();
                }
                i
            }
        });
        assert_eq!(join_all(futures.collect::<Vec<_>>()).await, [0, 1]);
    }
}
