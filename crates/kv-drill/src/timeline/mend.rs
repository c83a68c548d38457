//! Processes end, stand still, and come back.

use kv_fault::{Process, Target, Verb, Who};
use kv_types::NodeId;

use super::{Broken, NotFired, Stage, Timeline, is_target};
use crate::error::RunError;
use crate::local::Local;
use crate::record::Fault;

impl Timeline {
    /// Does something to processes.
    pub(super) async fn process(
        &mut self,
        stage: &mut Stage<'_>,
        process: Process,
        node: Option<NodeId>,
    ) -> Result<(), NotFired> {
        let Process { verb, target } = process;
        match (verb, node, target) {
            (Verb::Resume | Verb::Restart, _, target) => {
                let mut left = Vec::new();
                for broken in std::mem::take(&mut self.broken) {
                    let is_paused = broken.verb == Verb::Pause;
                    if is_target(target, &broken) && is_paused == (verb == Verb::Resume) {
                        self.mend(stage, &broken)?;
                    } else {
                        left.push(broken);
                    }
                }
                self.broken = left;
                self.tell_cut_off(stage);
                Ok(())
            }
            (Verb::Kill | Verb::Pause | Verb::Wipe | Verb::Damage, Some(node), Target::Who(who)) => {
                self.hurt(stage, (verb, who), node).await
            }
            (Verb::Kill | Verb::Pause | Verb::Wipe | Verb::Damage, _, _) => {
                Err(NotFired::Ever("it is done to one node".to_owned()))
            }
        }
    }

    async fn hurt(
        &mut self,
        stage: &mut Stage<'_>,
        (verb, who): (Verb, Who),
        node: NodeId,
    ) -> Result<(), NotFired> {
        let local = ours(stage)?;
        if local.down().contains(&node) {
            return Err(NotFired::Ever(format!("{node} does not run")));
        }
        match verb {
            Verb::Kill => local.kill(node).await?,
            Verb::Wipe => local.wipe(node).await?,
            Verb::Damage if local.bases(node)?.is_empty() => {
                return Err(NotFired::Ever(format!("{node} has no rows on its disk yet")));
            }
            Verb::Damage => local.damage(node).await?,
            Verb::Pause => local.pause(node).await?,
            Verb::Resume | Verb::Restart => {}
        }
        let name = format!("{} {node}", verb.name());
        let from_ms = stage.clock.ms();
        let plane = "process".to_owned();
        self.faults.push(Fault { text: name.clone(), name, plane, from_ms, ..Fault::default() });
        let fault = self.faults.len() - 1;
        // A node that is killed does not stand still any more.
        for earlier in self.broken.extract_if(.., |broken| broken.node == node && verb != Verb::Pause) {
            if let Some(fault) = self.faults.get_mut(earlier.fault) {
                fault.until_ms = from_ms;
            }
        }
        self.broken.push(Broken { verb, who, node, fault });
        self.tell_cut_off(stage);
        Ok(())
    }

    fn mend(&mut self, stage: &mut Stage<'_>, broken: &Broken) -> Result<(), RunError> {
        let local = ours(stage)?;
        match broken.verb {
            Verb::Pause => local.resume(broken.node)?,
            Verb::Kill | Verb::Wipe | Verb::Damage => local.launch(broken.node)?,
            Verb::Resume | Verb::Restart => {}
        }
        let now = stage.clock.ms();
        self.mended_ms = Some(now);
        if let Some(fault) = self.faults.get_mut(broken.fault) {
            fault.until_ms = now;
        }
        Ok(())
    }

    /// Mends whatever is still broken; whether something was.
    pub(crate) async fn mend_all(&mut self, stage: &mut Stage<'_>) -> Result<bool, RunError> {
        let was_broken = !self.in_force.is_empty() || !self.broken.is_empty();
        self.heal(stage, None, false).await?;
        for broken in std::mem::take(&mut self.broken) {
            self.mend(stage, &broken)?;
        }
        if let Some(local) = stage.local.as_deref_mut() {
            for node in local.paused() {
                local.resume(node)?;
            }
            for node in local.down() {
                local.launch(node)?;
            }
        }
        self.tell_cut_off(stage);
        Ok(was_broken)
    }
}

fn ours<'a>(stage: &'a mut Stage<'_>) -> Result<&'a mut Local, RunError> {
    let none = || RunError::Unfit("the processes of this cluster are not this program's".to_owned());
    stage.local.as_deref_mut().ok_or_else(none)
}
