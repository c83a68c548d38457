//! Client library: routing, deadlines, batching
