//! `del KEY`, `del --prefix P --yes`.

use kv_client::Client;
use kv_types::KeyRange;

use super::{Ended, parse_key};
use crate::args::{Del, Format};
use crate::console::Console;
use crate::failure::{CommandError, Exit};
use crate::json::WriteJson;

pub(crate) async fn run(args: Del, client: &Client, console: &mut Console) -> Ended {
    let (header, deleted) = match (&args.key, &args.prefix) {
        (Some(key), None) => {
            let done = client.delete(parse_key(console.encoding, key)?).await?;
            (done.header, done.deleted)
        }
        (None, Some(prefix)) => {
            let prefix = console.encoding.read(prefix).map_err(CommandError::usage)?;
            let range = KeyRange::prefix(prefix).map_err(CommandError::usage)?;
            let done = client.delete_range(range).await?;
            (done.header, done.deleted)
        }
        _ => return Err(CommandError::usage("a key or --prefix is needed, not both")),
    };
    match console.format {
        Format::Json => {
            let written = WriteJson { deleted: Some(deleted), ..WriteJson::new(&header, true) };
            console.json(&written)?;
        }
        Format::Plain | Format::Table => console.line(&deleted.to_string())?,
    }
    Ok(Exit::Ok)
}
