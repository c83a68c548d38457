//! `cas KEY VALUE (--expect-value V | --expect-revision N | --expect-absent)`.

use kv_client::{Client, Expect, Swapped};
use kv_types::Revision;

use super::{Ended, parse_key, parse_value};
use crate::args::{Cas, Expected, Format};
use crate::console::Console;
use crate::failure::{CommandError, Exit};
use crate::json::{RowJson, WriteJson};

pub(crate) async fn run(args: Cas, stdin: Option<Vec<u8>>, client: &Client, console: &mut Console) -> Ended {
    let key = parse_key(console.encoding, &args.key)?;
    let value = parse_value(console.encoding, &args.value, stdin)?;
    let expect = match &args.expect {
        Expected { expect_value: Some(expected), .. } => {
            Expect::Value(parse_value(console.encoding, expected, None)?)
        }
        Expected { expect_revision: Some(revision), .. } => Expect::Revision(Revision::new(*revision)),
        Expected { .. } => Expect::Absent,
    };
    let Swapped { header, swapped, current, value_omitted } = client.cas(key, expect, value).await?;
    match console.format {
        Format::Json => console.json(&WriteJson {
            swapped: Some(swapped),
            current: current.as_ref().map(|row| RowJson::new(row, &header, !value_omitted)),
            ..WriteJson::new(&header, swapped)
        })?,
        Format::Plain | Format::Table if swapped => {
            console.line(&format!("ok shard={} revision={}", header.shard.get(), header.revision.get()))?;
        }
        Format::Plain | Format::Table => {}
    }
    if swapped {
        return Ok(Exit::Ok);
    }
    console.flush()?;
    let found = match current {
        Some(row) => format!("the key was last written at revision {}", row.mod_revision.get()),
        None => "the key is absent".to_owned(),
    };
    let text = format!("the key is not as expected: {found}");
    Err(CommandError::own(Exit::CompareFailed, "FAILED_PRECONDITION", "compare_failed", text))
}
