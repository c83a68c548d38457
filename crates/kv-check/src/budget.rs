//! How much work a check may take.

/// How much work a check may take. It reads no clock: whoever calls passes one, if the time counts.
pub struct Budget<'a> {
    /// Steps in all. A step tries to place one operation.
    pub steps: u64,
    /// Configurations remembered at once, in all: this bounds the memory. One takes about a hundred bytes.
    pub configurations: usize,
    /// Says that it is time to give up. Asked every few thousand steps.
    pub stop: &'a dyn Fn() -> bool,
}

/// How many configurations are remembered if nothing else is said: they fit into two gigabytes or so.
pub const CONFIGURATIONS_MAX: usize = 16_000_000;

/// After how many steps at the most the clock is asked.
const STEPS_AT_ONCE: u64 = 4096;

impl Budget<'_> {
    /// A budget of so many steps, without a clock.
    #[must_use]
    pub fn steps(steps: u64) -> Budget<'static> {
        Budget { steps, configurations: CONFIGURATIONS_MAX, stop: &|| false }
    }

    /// A budget that lasts until it is time to give up.
    #[must_use]
    pub fn until(stop: &dyn Fn() -> bool) -> Budget<'_> {
        Budget { steps: u64::MAX, configurations: CONFIGURATIONS_MAX, stop }
    }
}

/// Why there is no verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exhausted {
    /// The caller's clock said stop.
    Stopped,
    /// The steps are used up.
    Steps,
    /// There is no room for more configurations.
    Configurations,
}

impl Exhausted {
    /// In words.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Stopped => "the deadline passed",
            Self::Steps => "the steps are used up",
            Self::Configurations => "there is no room for more configurations",
        }
    }
}

/// What is left of a budget.
pub(crate) struct Purse<'a> {
    budget: &'a Budget<'a>,
    steps: u64,
}

impl<'a> Purse<'a> {
    pub(crate) fn new(budget: &'a Budget<'a>) -> Self {
        Self { budget, steps: budget.steps }
    }

    /// A purse of its own with at most so many steps.
    pub(crate) fn part(&self, steps: u64) -> Self {
        Self { budget: self.budget, steps: self.steps.min(steps) }
    }

    /// How many steps were taken.
    pub(crate) fn spent(&self) -> u64 {
        self.budget.steps - self.steps
    }

    /// How many configurations may be remembered.
    pub(crate) fn configurations(&self) -> usize {
        self.budget.configurations
    }

    /// Steps to take before asking again, at most so many.
    pub(crate) fn draw(&mut self, most: u64) -> Result<u64, Exhausted> {
        if (self.budget.stop)() {
            return Err(Exhausted::Stopped);
        }
        let steps = self.steps.min(most).min(STEPS_AT_ONCE);
        self.steps -= steps;
        if steps == 0 { Err(Exhausted::Steps) } else { Ok(steps) }
    }

    /// Takes as many steps as something else was worth.
    pub(crate) fn pay(&mut self, steps: u64) -> Result<(), Exhausted> {
        if (self.budget.stop)() {
            return Err(Exhausted::Stopped);
        }
        self.steps = self.steps.checked_sub(steps).ok_or(Exhausted::Steps)?;
        Ok(())
    }

    /// Steps that were drawn and not taken.
    pub(crate) fn give_back(&mut self, steps: u64) {
        self.steps += steps;
    }
}
