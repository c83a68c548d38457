//! Generates the wire code from the top-level `proto/`, without `protoc`.

use std::path::PathBuf;

use prost::Message as _;

const FILES: [&str; 8] = [
    "quorate/v1/common.proto",
    "quorate/v1/error.proto",
    "quorate/v1/kv.proto",
    "quorate/v1/session.proto",
    "quorate/v1/txn.proto",
    "quorate/v1/cluster.proto",
    "quorate/v1/peer.proto",
    "quorate/v1/chaos.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let descriptors = protox::compile(FILES, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("quorate_v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
