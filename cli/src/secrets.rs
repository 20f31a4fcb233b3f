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
        settings.passphrase = Some(ask_passphrase(directory, false)?);
    }
    Ok(settings)
}

/// The passphrase from the file, without the end of the line, or from the environment.
pub fn read_passphrase(file: Option<&Path>) -> Result<Option<SecretString>> {
    let Some(path) = file else {
        let passphrase = std::env::var("KEYPOOL_PASSPHRASE").ok().filter(|passphrase| !passphrase.is_empty());
        return Ok(passphrase.map(SecretString::from));
    };
    let text =
        fs::read_to_string(path).map_err(|source| Error::File { doing: "read", path: path.to_owned(), source })?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(Error::Usage(format!("{} holds no passphrase", path.display()))),
        passphrase => Ok(Some(passphrase.into())),
    }
}

/// Asks for the passphrase on a terminal, twice if it is new.
pub fn ask_passphrase(directory: &Path, is_new: bool) -> Result<SecretString> {
    if !io::stdin().is_terminal() {
        return Err(if is_new {
            let how = "give the passphrase in KEYPOOL_PASSPHRASE or by --passphrase-file";
            Error::Usage(format!("there is no terminal on which to ask for a passphrase: {how}"))
        } else {
            ClientError::Encrypted(directory.to_owned()).into()
        });
    }
    let ask = |prompt: &str| {
        rpassword::prompt_password(prompt).map_err(|source| Error::File {
            doing: "ask for the passphrase of",
            path: directory.to_owned(),
            source,
        })
    };
    let passphrase = ask("Passphrase: ")?;
    if passphrase.is_empty() || is_new && ask("Repeat the passphrase: ")? != passphrase {
        return Err(Error::Usage("the passphrase is empty, or the two inputs differ: nothing was created".to_owned()));
    }
    Ok(passphrase.into())
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
