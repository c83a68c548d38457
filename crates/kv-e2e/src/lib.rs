//! Tests on real processes
