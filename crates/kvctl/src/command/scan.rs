//! `scan [PREFIX] [--from --to --limit --keys-only]`.

use bytes::Bytes;
use kv_client::{Client, Page, ScanRequest};
use kv_types::KeyRange;

use super::Ended;
use crate::args::{Format, Scan};
use crate::bytes_text::Encoding;
use crate::console::Console;
use crate::failure::{CommandError, Exit};
use crate::json::RowJson;

pub(crate) async fn run(args: Scan, client: &Client, console: &mut Console) -> Ended {
    let Some(range) = range(&args, console.encoding)? else { return Ok(Exit::Ok) };
    let mut scan = client.scan(ScanRequest { range, limit: args.limit, keys_only: args.keys_only });
    let mut table = Vec::new();
    while let Some(page) = scan.next_page().await? {
        print(&args, &page, console, &mut table)?;
    }
    if console.format == Format::Table {
        let head: &[&str] = if args.keys_only { &["KEY"] } else { &["KEY", "VALUE", "REVISION", "SHARD"] };
        console.rows(head, table)?;
    }
    Ok(Exit::Ok)
}

fn print(
    args: &Scan,
    page: &Page,
    console: &mut Console,
    table: &mut Vec<Vec<String>>,
) -> Result<(), CommandError> {
    let encoding = console.encoding;
    for row in &page.rows {
        let (key, value) = (row.key.as_ref(), row.value.as_ref());
        match (console.format, args.keys_only) {
            (Format::Json, keys_only) => console.json(&RowJson::new(row, &page.header, !keys_only))?,
            (Format::Plain, keys_only) if args.raw => {
                let parts: &[&[u8]] = if keys_only { &[key] } else { &[key, value] };
                for part in parts {
                    console.raw(part)?;
                    console.raw(b"\0")?;
                }
            }
            (Format::Plain, true) => console.line(&encoding.write(key))?,
            (Format::Plain, false) => {
                console.line(&format!("{}\t{}", encoding.write(key), encoding.write(value)))?;
            }
            (Format::Table, true) => table.push(vec![encoding.write(key)]),
            (Format::Table, false) => table.push(vec![
                encoding.write(key),
                encoding.write(value),
                row.mod_revision.get().to_string(),
                page.header.shard.get().to_string(),
            ]),
        }
    }
    Ok(())
}

/// The keys asked for; `None` if there can be none, which is no error.
fn range(args: &Scan, encoding: Encoding) -> Result<Option<KeyRange>, CommandError> {
    let read = |argument: &Option<String>| {
        let bytes = argument.as_ref().map(|text| encoding.read(text)).transpose();
        bytes.map(|bytes| bytes.map(Bytes::from)).map_err(CommandError::usage)
    };
    let within = KeyRange::prefix(read(&args.prefix)?.unwrap_or_default()).map_err(CommandError::usage)?;
    let (from, to) = (read(&args.from)?.unwrap_or_default(), read(&args.to)?);
    // Equal bounds are an empty range, which a script may well compute; bounds that run back are a mistake.
    if to.as_ref().is_some_and(|to| *to < from) {
        return Err(CommandError::usage("the range runs back: --from is after --to"));
    }
    match KeyRange::new(from, to) {
        Ok(range) => Ok(within.intersection(&range)),
        Err(kv_types::RangeError::Empty) => Ok(None),
        Err(error) => Err(CommandError::usage(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(prefix: Option<&str>, from: Option<&str>, to: Option<&str>) -> Option<String> {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let (prefix, from, to) = (owned(prefix), owned(from), owned(to));
        let args = Scan { prefix, from, to, limit: None, keys_only: false, raw: false };
        range(&args, Encoding::Text).unwrap().map(|range| range.to_string())
    }

    #[test]
    fn prefix_and_bounds_narrow_each_other() {
        assert_eq!(of(None, None, None).unwrap(), "[, end)");
        assert_eq!(of(Some("ab"), None, None).unwrap(), "[ab, ac)");
        assert_eq!(of(Some("ab"), Some("abc"), Some("z")).unwrap(), "[abc, ac)");
        assert_eq!(of(Some("ab"), Some("b"), None), None);
        assert_eq!(of(None, Some("b"), Some("b")), None);
    }

    #[test]
    fn bounds_that_run_back_are_a_mistake() {
        let bound = |text: &str| Some(text.to_owned());
        let args = Scan {
            prefix: None,
            from: bound("b"),
            to: bound("a"),
            limit: None,
            keys_only: false,
            raw: false,
        };
        assert_eq!(range(&args, Encoding::Text).unwrap_err().exit, Exit::Usage);
    }
}
