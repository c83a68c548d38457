//! `put KEY VALUE|- [--request-id ID]`.

use kv_client::Client;

use super::{Ended, parse_key, parse_value};
use crate::args::{Format, Put};
use crate::console::Console;
use crate::failure::Exit;
use crate::json::WriteJson;

pub(crate) async fn run(args: Put, stdin: Option<Vec<u8>>, client: &Client, console: &mut Console) -> Ended {
    let key = parse_key(console.encoding, &args.key)?;
    let value = parse_value(console.encoding, &args.value, stdin)?;
    let written = match args.request_id {
        None => client.put(key, value).await?,
        Some(id) => client.put_as(id, key, value).await?,
    };
    let header = written.header;
    match console.format {
        Format::Json => console.json(&WriteJson::new(&header, true))?,
        Format::Plain | Format::Table => {
            console.line(&format!("ok shard={} revision={}", header.shard.get(), header.revision.get()))?;
        }
    }
    Ok(Exit::Ok)
}
