//! `incr KEY [N]`.

use kv_client::{Client, Incremented};

use super::{Ended, parse_key};
use crate::args::{Format, Incr};
use crate::console::Console;
use crate::failure::Exit;
use crate::json::WriteJson;

pub(crate) async fn run(args: Incr, client: &Client, console: &mut Console) -> Ended {
    let key = parse_key(console.encoding, &args.key)?;
    let Incremented { header, value } = client.incr(key, args.delta).await?;
    match console.format {
        Format::Json => console.json(&WriteJson { value: Some(value), ..WriteJson::new(&header, true) })?,
        Format::Plain | Format::Table => console.line(&value.to_string())?,
    }
    Ok(Exit::Ok)
}
