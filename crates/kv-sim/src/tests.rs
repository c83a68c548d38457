//! Clusters driven by hand: named paths, and random walks that know no time between two events.

mod manual;
mod paths;
mod walk;
