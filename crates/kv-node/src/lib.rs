//! The daemon: hosts replicas and serves gRPC
