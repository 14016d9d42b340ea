//! Reads a password for `authd hash-password` and `ftpctl users`: twice without echo from a terminal,
//! otherwise one line of standard input.

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use std::{
    io::{self, BufRead, IsTerminal, Read, Write},
    os::fd::BorrowedFd,
};

use crate::secret::Secret;

/// Maximum number of bytes to read. Larger than the maximum length of a password, so that a longer one is
/// refused instead of truncated.
const MAX_LINE: u64 = 4096;

/// Reads a password from standard input.
///
/// # Errors
/// There is no input, the two passwords differ, or reading fails.
pub fn password() -> io::Result<Secret> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return line();
    }
    let first = without_echo("Password: ")?;
    if without_echo("Repeat password: ")? != first {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the two passwords differ"));
    }
    Ok(first)
}

fn without_echo(prompt: &str) -> io::Result<Secret> {
    let mut stderr = io::stderr();
    stderr.write_all(prompt.as_bytes())?;
    stderr.flush()?;
    let stdin = io::stdin();
    let password = {
        let _echo = NoEcho::new(&stdin)?;
        line()
    };
    stderr.write_all(b"\n")?;
    password
}

fn line() -> io::Result<Secret> {
    let mut text = zeroize::Zeroizing::new(String::new());
    if io::stdin().lock().take(MAX_LINE).read_line(&mut text)? == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no password was given"));
    }
    let password = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Secret::new(password.strip_suffix('\r').unwrap_or(password)))
}

/// Switches the terminal's echo off until it is dropped. Ctrl-C becomes a character, as in getpass(3):
/// ending the process here would leave the echo off. Passwords cannot contain that character.
struct NoEcho<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> NoEcho<'a> {
    fn new(terminal: &'a impl std::os::fd::AsFd) -> io::Result<Self> {
        let terminal = terminal.as_fd();
        let before = tcgetattr(terminal)?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO | LocalFlags::ISIG);
        tcsetattr(terminal, SetArg::TCSAFLUSH, &silent)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for NoEcho<'_> {
    fn drop(&mut self) {
        // Fails only if the terminal is gone.
        let _ = tcsetattr(self.terminal, SetArg::TCSAFLUSH, &self.before);
    }
}
