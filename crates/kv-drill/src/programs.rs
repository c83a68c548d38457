//! Where the programs are.

use std::path::PathBuf;

use crate::error::RunError;

/// The path of the program `name`: in the folder that `QUORATE_BIN_DIR` names, or else beside the program that runs.
///
/// # Errors
/// [`RunError::NoProgram`] if it is not there.
pub fn path_of(name: &str) -> Result<PathBuf, RunError> {
    let dir = match std::env::var_os("QUORATE_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let own =
                std::env::current_exe().map_err(RunError::system("cannot tell where this program is"))?;
            own.parent().map(PathBuf::from).unwrap_or_default()
        }
    };
    let path = dir.join(name);
    if path.is_file() { Ok(path) } else { Err(RunError::NoProgram(path)) }
}
