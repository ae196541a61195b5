//! Where settings come from: defaults, then the file, then the environment.

use std::ffi::OsString;
use std::path::Path;

use toml::{Table, Value};

use super::{Config, Error, Result};

/// What names of environment variables that override a setting begin with.
const PREFIX: &str = "RAFTHOLD_";

/// Reads the file (if any), lays the environment over it and checks the whole.
pub(super) fn load(path: Option<&Path>, environment: impl Iterator<Item = (OsString, OsString)>) -> Result<Config> {
    let mut table = match path {
        None => Table::new(),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.into(), source })?;
            text.parse::<Table>().map_err(|source| Error::Parse { path: path.into(), source: Box::new(source) })?
        }
    };
    let shape = Table::try_from(Config::default()).expect("defaults print as a table");
    for (name, value) in overrides(environment)? {
        set(&mut table, &shape, &name, value)?;
    }
    let config: Config = Value::Table(table)
        .try_into()
        .map_err(|source: toml::de::Error| Error::Setting { source: Box::new(source) })?;
    config.validate()?;
    Ok(config)
}

/// The variables that are overrides: those with `__` between section and key.
///
/// Others that begin alike (`RAFTHOLD_PASSWORD` for the command line, a script's own) are not settings.
fn overrides(environment: impl Iterator<Item = (OsString, OsString)>) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for (name, value) in environment {
        let Some(name) = name.to_str().map(str::to_owned) else { continue };
        if !name.starts_with(PREFIX) || !name.contains("__") {
            continue;
        }
        match value.into_string() {
            Ok(value) => found.push((name, value)),
            Err(_) => return Err(Error::Environment { name, problem: "its value is not UTF-8".to_owned() }),
        }
    }
    found.sort();
    Ok(found)
}

fn set(table: &mut Table, shape: &Table, name: &str, text: String) -> Result<()> {
    let path: Vec<String> = name[PREFIX.len()..].split("__").map(str::to_ascii_lowercase).collect();
    let problem = |problem: &str| Error::Environment { name: name.to_owned(), problem: problem.to_owned() };
    let (key, sections) = path.split_last().ok_or_else(|| problem("it names no setting"))?;
    let mut here = table;
    let mut like = Some(shape);
    for section in sections {
        like = like.and_then(|like| like.get(section)).and_then(Value::as_table);
        if like.is_none() {
            return Err(problem("there is no such section"));
        }
        here = here
            .entry(section.clone())
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .ok_or_else(|| problem("the file has a value where a section should be"))?;
    }
    let value = match like.and_then(|like| like.get(key)) {
        Some(Value::Integer(_)) => Value::Integer(text.trim().parse().map_err(|_| problem("an integer is wanted"))?),
        Some(Value::Boolean(_)) => Value::Boolean(text.trim().parse().map_err(|_| problem("true or false is wanted"))?),
        Some(Value::Array(_)) => Value::Array(
            text.split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| Value::String(item.into()))
                .collect(),
        ),
        // a text, or an optional text, or a name that the reader will refuse as unknown
        _ => Value::String(text),
    };
    here.insert(key.clone(), value);
    Ok(())
}
