//! Writes the reports of three made records into a folder: `cargo run -p kv-drill --example report -- FOLDER`.

#[path = "report/made.rs"]
mod made;

use std::io::Write;
use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("reports"), PathBuf::from);
    std::fs::create_dir_all(&folder)?;
    for (name, record) in made::all() {
        let path = folder.join(format!("{name}.html"));
        std::fs::write(&path, kv_drill::report::html(&record))?;
        writeln!(std::io::stdout(), "{}", path.display())?;
    }
    Ok(())
}
