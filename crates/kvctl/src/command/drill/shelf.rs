//! `drill list` and `drill new`.

use std::path::Path;

use kv_drill::CatalogueError;
use serde_json::json;

use crate::args::Format;
use crate::bytes_text::harmless;
use crate::command::Ended;
use crate::console::Console;
use crate::failure::{CommandError, Exit};

pub(crate) fn list(folder: &Path, console: &mut Console) -> Ended {
    let entries = kv_drill::list(folder).map_err(failed)?;
    let mut exit = Exit::Ok;
    let mut rows = Vec::new();
    for entry in &entries {
        let path = entry.path.display().to_string();
        match (&entry.drill, console.format) {
            (Ok(drill), Format::Json) => {
                console.json(&json!({ "name": drill.name, "about": drill.about, "path": path }))?;
            }
            (Ok(drill), Format::Plain | Format::Table) => {
                rows.push([&drill.name, &drill.about, &path].map(|text| harmless(text)).to_vec());
            }
            (Err(error), _) => {
                exit = Exit::Error;
                let wrong = format!("{path}: {error}");
                CommandError::own(exit, "INVALID_ARGUMENT", "drill", wrong).report(console.format);
            }
        }
    }
    if console.format != Format::Json {
        console.rows(&["NAME", "ABOUT", "FILE"], rows)?;
    }
    Ok(exit)
}

pub(crate) fn new(name: &str, console: &mut Console) -> Ended {
    let text = kv_drill::template(name).map_err(failed)?;
    console.raw(text.as_bytes())?;
    Ok(Exit::Ok)
}

fn failed(error: CatalogueError) -> CommandError {
    match error {
        CatalogueError::Unreadable { .. } => {
            CommandError::own(Exit::Error, "NOT_FOUND", "drill", error.to_string())
        }
        CatalogueError::Name(why) => CommandError::usage(why),
    }
}
