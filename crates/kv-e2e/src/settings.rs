//! How large a run is: small by default, larger by the environment.

/// The number in the environment variable `name`, or `default` if there is none.
///
/// # Errors
/// If what is there is no number: a run that silently takes the default shows less than was asked for.
pub fn number(name: &str, default: u64) -> anyhow::Result<u64> {
    match std::env::var(name) {
        Err(std::env::VarError::NotPresent) => Ok(default),
        Err(cause) => anyhow::bail!("{name}: {cause}"),
        Ok(text) => text.parse().map_err(|_| anyhow::anyhow!("{name}={text} is no number")),
    }
}
