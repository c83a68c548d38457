//! `cluster settings|set`.

use std::collections::BTreeMap;

use kv_client::Client;
use serde::Serialize;

use super::Ended;
use crate::args::{ClusterVerb, Format};
use crate::bytes_text::harmless;
use crate::console::Console;
use crate::failure::Exit;

#[derive(Debug, Serialize)]
struct SettingsJson {
    settings: BTreeMap<String, String>,
}

pub(crate) async fn run(verb: ClusterVerb, client: &Client, console: &mut Console) -> Ended {
    if let ClusterVerb::Set { name, value } = &verb {
        client.set_setting(name, value).await?;
        let text = format!("ok {}={}", harmless(name), harmless(value));
        if console.format == Format::Json {
            let settings = BTreeMap::from([(name.clone(), value.clone())]);
            console.json(&SettingsJson { settings })?;
        } else {
            console.line(&text)?;
        }
        return Ok(Exit::Ok);
    }
    let settings = client.members().await?.settings;
    let settings: BTreeMap<String, String> = settings.into_iter().map(|s| (s.name, s.value)).collect();
    if console.format == Format::Json {
        console.json(&SettingsJson { settings })?;
        return Ok(Exit::Ok);
    }
    let row = |(name, value): (String, String)| vec![harmless(&name), harmless(&value)];
    console.rows(&["SETTING", "VALUE"], settings.into_iter().map(row).collect())?;
    Ok(Exit::Ok)
}
