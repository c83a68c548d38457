//! One object: is there an order?

use crate::budget::{Budget, Exhausted, Purse};
use crate::model::Model;
use crate::search::{Progress, Search, Timed};

/// What the search for an order came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Linearised {
    /// An order that explains every result: the numbers of the operations. Open ones that are not in it never took
    /// effect.
    Order(Vec<usize>),
    /// There is none. This is the longest the search could place.
    Impossible {
        /// The numbers of the operations placed, in order.
        longest: Vec<usize>,
    },
    /// It is not known.
    Unknown(Exhausted),
}

/// Looks for an order of the operations of one object.
///
/// The model must have translated them itself: it may know more about their values than stands in them.
pub fn linearise<M: Model>(model: &M, ops: &[Timed<M::Op>], budget: &Budget<'_>) -> Linearised {
    linearise_within(model, ops, &mut Purse::new(budget), u64::MAX)
}

/// The same from a purse that others draw from too, with at most so many steps.
pub(crate) fn linearise_within<M: Model>(
    model: &M,
    ops: &[Timed<M::Op>],
    purse: &mut Purse<'_>,
    steps: u64,
) -> Linearised {
    let mut search = Search::new(model, ops);
    match advance(&mut search, purse, steps, 0) {
        Ok(Progress::Found) => Linearised::Order(search.order()),
        Ok(Progress::Exhausted) => Linearised::Impossible { longest: search.longest().to_vec() },
        Ok(Progress::Paused) => Linearised::Unknown(Exhausted::Steps),
        Err(exhausted) => Linearised::Unknown(exhausted),
    }
}

/// Takes a search on by at most so many steps, while others remember that many configurations.
pub(crate) fn advance<M: Model>(
    search: &mut Search<'_, M>,
    purse: &mut Purse<'_>,
    steps: u64,
    elsewhere: usize,
) -> Result<Progress, Exhausted> {
    let mut left = steps;
    while left > 0 {
        let drawn = purse.draw(left)?;
        let mut unused = drawn;
        let progress = search.run(&mut unused);
        purse.give_back(unused);
        left -= drawn - unused;
        if progress != Progress::Paused {
            return Ok(progress);
        }
        if search.configurations() + elsewhere > purse.configurations() {
            return Err(Exhausted::Configurations);
        }
    }
    Ok(Progress::Paused)
}
