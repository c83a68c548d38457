//! Load generator
