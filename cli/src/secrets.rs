//! Secrets that people and scripts give: passphrases and tokens.

use std::{
    fs,
    io::{self, IsTerminal as _},
    path::Path,
};

use keypool_client::{Error as ClientError, LocalStore, Settings};
use secrecy::SecretString;

use crate::error::{Error, Result};

/// Asks for the passphrase of an encrypted device, unless it is given.
pub fn with_passphrase(directory: &Path, mut settings: Settings) -> Result<Settings> {
    if !directory.is_dir() {
        return Err(ClientError::NotInitialised(directory.to_owned()).into());
    }
    if settings.passphrase.is_none() && LocalStore::is_encrypted(directory)? {
        settings.passphrase = Some(ask_passphrase(directory)?);
    }
    Ok(settings)
}

/// The passphrase from the file, without the end of the line, or from the variable of the environment.
pub fn read_passphrase(file: Option<&Path>, variable: &str) -> Result<Option<SecretString>> {
    let Some(path) = file else {
        let passphrase = std::env::var(variable).ok().filter(|passphrase| !passphrase.is_empty());
        return Ok(passphrase.map(SecretString::from));
    };
    let text =
        fs::read_to_string(path).map_err(|source| Error::File { doing: "read", path: path.to_owned(), source })?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(Error::Usage(format!("{} holds no passphrase", path.display()))),
        passphrase => Ok(Some(passphrase.into())),
    }
}

/// Asks for the passphrase on a terminal.
pub fn ask_passphrase(directory: &Path) -> Result<SecretString> {
    if !io::stdin().is_terminal() {
        return Err(ClientError::Encrypted(directory.to_owned()).into());
    }
    match ask(directory, "Passphrase: ")? {
        empty if empty.is_empty() => Err(Error::Usage("the passphrase is empty".to_owned())),
        passphrase => Ok(passphrase.into()),
    }
}

/// Asks for a new passphrase on a terminal, twice. `how` says how a script gives it.
pub fn ask_new_passphrase(directory: &Path, how: &str) -> Result<SecretString> {
    if !io::stdin().is_terminal() {
        return Err(Error::Usage(format!("there is no terminal on which to ask for a passphrase: give it {how}")));
    }
    let passphrase = ask(directory, "New passphrase: ")?;
    if passphrase.is_empty() || ask(directory, "Repeat the new passphrase: ")? != passphrase {
        return Err(Error::Usage("the passphrase is empty, or the two inputs differ: nothing has changed".to_owned()));
    }
    Ok(passphrase.into())
}

fn ask(directory: &Path, prompt: &str) -> Result<String> {
    rpassword::prompt_password(prompt).map_err(|source| Error::File {
        doing: "ask for the passphrase of",
        path: directory.to_owned(),
        source,
    })
}

/// Reads a token from a terminal, or from the standard input.
pub fn read_token() -> Result<SecretString> {
    let token =
        if io::stdin().is_terminal() { rpassword::prompt_password("Token: ") } else { io::read_to_string(io::stdin()) };
    match token.map(|token| token.trim().to_owned()) {
        Ok(token) if token.is_empty() => Err(Error::Usage("the standard input holds no token".to_owned())),
        Ok(token) => Ok(token.into()),
        Err(source) => Err(Error::File { doing: "read the token from", path: "the standard input".into(), source }),
    }
}
