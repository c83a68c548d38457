//! `version`.

use serde_json::json;

use super::Ended;
use crate::args::Format;
use crate::console::Console;
use crate::failure::Exit;

pub(crate) fn run(console: &mut Console) -> Ended {
    let version = env!("CARGO_PKG_VERSION");
    match console.format {
        Format::Json => console.json(&json!({ "version": version }))?,
        Format::Plain | Format::Table => console.line(&format!("kvctl {version}"))?,
    }
    Ok(Exit::Ok)
}
