//! `get KEY...`.

use kv_client::{Client, Got};
use kv_types::Key;

use super::{Ended, parse_key};
use crate::args::{Format, Get};
use crate::console::Console;
use crate::failure::{CommandError, Exit};
use crate::json::RowJson;

pub(crate) async fn run(args: Get, client: &Client, console: &mut Console) -> Ended {
    let encoding = console.encoding;
    let keys = args.keys.iter().map(|key| parse_key(encoding, key)).collect::<Result<Vec<_>, _>>()?;
    let found = match keys.as_slice() {
        [key] => vec![client.get(key.clone()).await?],
        _ => client.multi_get(keys.clone()).await?.found,
    };
    let mut exit = Exit::Ok;
    let mut table = Vec::new();
    for (key, got) in keys.iter().zip(found) {
        match got {
            Got { row: Some(row), header } => match console.format {
                Format::Json => console.json(&RowJson::new(&row, &header, true))?,
                Format::Plain if args.raw => console.raw(row.value.as_ref())?,
                Format::Plain => console.value(row.value.as_ref())?,
                Format::Table => table.push(vec![
                    encoding.write(key.as_ref()),
                    encoding.write(row.value.as_ref()),
                    row.mod_revision.get().to_string(),
                    row.version.to_string(),
                    header.shard.get().to_string(),
                ]),
            },
            Got { row: None, .. } => {
                absent(key, console)?;
                exit = Exit::Absent;
            }
        }
    }
    if console.format == Format::Table {
        console.rows(&["KEY", "VALUE", "REVISION", "VERSION", "SHARD"], table)?;
    }
    Ok(exit)
}

/// Says on standard error that a key is absent, after what was found before it.
fn absent(key: &Key, console: &mut Console) -> Result<(), CommandError> {
    console.flush()?;
    let text = format!("the key `{}` is absent", console.encoding.write(key.as_ref()));
    CommandError::own(Exit::Absent, "NOT_FOUND", "absent", text).report(console.format);
    Ok(())
}
