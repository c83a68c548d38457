//! `request-id KEY`.

use kv_client::Client;
use serde_json::json;

use super::{Ended, parse_key};
use crate::args::{Format, NewRequestId};
use crate::console::Console;
use crate::failure::Exit;

pub(crate) async fn run(args: NewRequestId, client: &Client, console: &mut Console) -> Ended {
    let key = parse_key(console.encoding, &args.key)?;
    let id = client.new_request_id(&key).await?.to_string();
    match console.format {
        Format::Json => console.json(&json!({ "request_id": id }))?,
        Format::Plain | Format::Table => console.line(&id)?,
    }
    Ok(Exit::Ok)
}
