//! The reference server `null`: the smallest FTP server that can run the workloads. It uses one
//! thread for each session, one `sendfile` for a download and `splice` through a large pipe for an
//! upload. It checks and logs nothing. The additional CPU time of another server is the cost of
//! everything but moving bytes.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, BufWriter, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
};

use nix::{
    fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice},
    sys::{sendfile::sendfile, socket::Backlog, socket::listen},
    unistd::pipe2,
};

use crate::client::other;

/// Serves `root` on a loopback address until the process ends.
///
/// # Errors
/// The address is not a loopback address, or the server cannot listen on it.
pub(crate) fn serve(address: SocketAddrV4, root: &Path) -> io::Result<()> {
    // This server has no access control.
    if !address.ip().is_loopback() {
        return Err(other(format!("{address} is not a loopback address")));
    }
    let listener = TcpListener::bind(address)?;
    listen(&listener, Backlog::new(4096)?)?;
    for connection in listener.incoming() {
        let (connection, root) = (connection?, root.to_owned());
        let session = thread::Builder::new().stack_size(64 << 10);
        // Errors are ignored: the client sees a closed connection.
        session.spawn(move || NullSession::new(connection, *address.ip(), root)?.run())?;
    }
    Ok(())
}

struct NullSession {
    input: BufReader<TcpStream>,
    output: TcpStream,
    address: Ipv4Addr,
    directory: PathBuf,
    passive: Option<TcpListener>,
}

impl NullSession {
    fn new(connection: TcpStream, address: Ipv4Addr, directory: PathBuf) -> io::Result<Self> {
        connection.set_nodelay(true)?;
        let output = connection.try_clone()?;
        Ok(Self {
            input: BufReader::with_capacity(512, connection),
            output,
            address,
            directory,
            passive: None,
        })
    }

    fn run(mut self) -> io::Result<()> {
        self.reply("220 ready")?;
        let mut line = String::new();
        loop {
            line.clear();
            if self.input.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let (verb, argument) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
            match verb {
                "USER" => self.reply("331 go on")?,
                "PASS" => self.reply("230 welcome")?,
                "TYPE" | "NOOP" => self.reply("200 done")?,
                "CWD" => {
                    self.directory.push(argument);
                    self.reply("250 done")?;
                }
                "EPSV" => {
                    let listener = TcpListener::bind((self.address, 0))?;
                    let port = listener.local_addr()?.port();
                    self.passive = Some(listener);
                    self.reply(&format!("229 passive (|||{port}|)"))?;
                }
                "RETR" => {
                    let file = File::open(self.directory.join(argument))?;
                    self.transfer(|data| send(&file, data))?;
                }
                "STOR" => {
                    let file = File::create(self.directory.join(argument))?;
                    self.transfer(|data| receive(data, &file))?;
                }
                "LIST" | "MLSD" => {
                    let directory = self.directory.clone();
                    self.transfer(|data| list(&directory, data))?;
                }
                "QUIT" => return self.reply("221 bye"),
                _ => self.reply("502 no")?,
            }
        }
    }

    fn reply(&mut self, text: &str) -> io::Result<()> {
        self.output.write_all(format!("{text}\r\n").as_bytes())
    }

    fn transfer(&mut self, work: impl FnOnce(&TcpStream) -> io::Result<()>) -> io::Result<()> {
        let listener = self.passive.take().ok_or_else(|| other("no EPSV precedes the transfer"))?;
        let (data, _) = listener.accept()?;
        self.reply("150 here it comes")?;
        work(&data)?;
        drop(data);
        self.reply("226 done")
    }
}

fn send(file: &File, data: &TcpStream) -> io::Result<()> {
    let size = file.metadata()?.len();
    let mut sent = 0;
    while sent < size {
        match sendfile(data, file, None, 1 << 30)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => sent += count as u64,
        }
    }
    Ok(())
}

fn receive(data: &TcpStream, file: &File) -> io::Result<()> {
    const CAPACITY: usize = 1 << 20;
    let (output, input) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&input, FcntlArg::F_SETPIPE_SZ(CAPACITY as i32))?;
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_MORE;
    loop {
        let mut left = splice(data.as_fd(), None, &input, None, CAPACITY, flags)?;
        if left == 0 {
            return Ok(());
        }
        while left > 0 {
            left -= splice(&output, None, file.as_fd(), None, left, flags)?;
        }
    }
}

fn list(directory: &Path, data: &TcpStream) -> io::Result<()> {
    let mut output = BufWriter::with_capacity(128 << 10, data);
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let facts = entry.metadata()?;
        let kind = if facts.is_dir() { "dir" } else { "file" };
        write!(output, "type={kind};size={};modify={};", facts.len(), facts.mtime())?;
        write!(output, "UNIX.mode={:o}; ", facts.mode() & 0o777)?;
        output.write_all(entry.file_name().as_encoded_bytes())?;
        output.write_all(b"\r\n")?;
    }
    output.flush()
}
