//! Common FTP clients (curl, lftp, rclone, wget, ncftp, Python's ftplib) against a whole cluster.

use cluster_tests::{
    clients::Clients,
    cluster::Cluster,
    content::{bytes, sha256},
};

/// Names and contents of the files that each client transfers: empty, small and large files, and names
/// with spaces, umlauts and directories.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("empty", vec![]),
        ("small file.txt", b"one line\n".to_vec()),
        ("inner/large.bin", bytes(1, 20 << 20)),
        ("inner/deeper/größe.bin", bytes(2, 70_000)),
    ]
}

fn write_files(clients: &Clients, directory: &str) {
    for (name, content) in files() {
        clients.write(&format!("{directory}/{name}"), content);
    }
}

fn assert_files(command: &str, read: impl Fn(&str) -> Vec<u8>) {
    for (name, content) in files() {
        assert_eq!(sha256(read(name)), sha256(content), "{command}: {name}");
    }
}

fn stored(cluster: &Cluster, directory: &str) -> impl Fn(&str) -> Vec<u8> {
    let directory = cluster.storage().join("demo").join(directory);
    move |name| {
        let path = directory.join(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

#[test]
fn curl_uploads_resumes_lists_and_downloads() {
    let (cluster, clients) = (Cluster::start(), Clients::with_home());
    let content = bytes(3, 9 << 20);
    clients.write("file.bin", &content);
    let url = cluster.url("demo", "/in/file.bin");
    clients.run("curl", ["-sS", "--ftp-create-dirs", "-T", "file.bin", &url]);
    assert_eq!(sha256(stored(&cluster, "in")("file.bin")), sha256(&content));
    clients.run("curl", ["-sS", "-o", "passive.bin", "--disable-epsv", &url]);
    assert_eq!(sha256(clients.read("passive.bin")), sha256(&content));

    clients.write("part.bin", &content[..1_000_003]);
    clients.run("curl", ["-sS", "-C", "-", "-o", "part.bin", &url]);
    assert_eq!(sha256(clients.read("part.bin")), sha256(&content));
    let shorter = cluster.url("demo", "/in/shorter.bin");
    clients.run("curl", ["-sS", "-T", "-", &shorter]);
    clients.write("head.bin", &content[..2_000_000]);
    clients.run("curl", ["-sS", "-T", "head.bin", &shorter]);
    clients.run("curl", ["-sS", "-C", "-", "-T", "file.bin", &shorter]);
    assert_eq!(sha256(stored(&cluster, "in")("shorter.bin")), sha256(&content));

    let names = clients.run("curl", ["-sS", "-l", &cluster.url("demo", "/in/")]).text();
    let mut names: Vec<&str> = names.lines().collect();
    names.sort_unstable();
    assert_eq!(names, ["file.bin", "shorter.bin"]);
    let head = clients.run("curl", ["-sS", "-I", &url]).text();
    assert!(head.contains(&format!("Content-Length: {}", content.len())), "{head}");
    assert!(head.contains("Last-Modified:"), "{head}");
    let run = clients.attempt("curl", ["-sS", &cluster.url("demo", "/in/none.bin")]);
    assert!(!run.succeeded);
    clients.run("curl", ["-sS", "-Q", "-DELE in/file.bin", &cluster.url("demo", "/")]);
    assert!(!cluster.storage().join("demo/in/file.bin").exists());
}

fn lftp(cluster: &Cluster, clients: &Clients, script: &str) -> String {
    // No ABOR: lftp sends it with urgent data, which nginx may lose (nginx/README.md, "Urgent data").
    // A time limit: lftp 4.9 sometimes waits for a second reply after it has cut a piece of `pget` off, whose
    // 426 it has read. By default it waits for five minutes.
    let settings = "set ftp:use-abor false; set net:max-retries 2; set net:reconnect-interval-base 1; \
                    set net:timeout 20; set cmd:fail-exit true; set ftp:ssl-allow false";
    let open = format!("open {}", cluster.url("demo", "/"));
    clients.run("lftp", ["--norc", "-c", &format!("{settings}; {open}; {script}")]).text()
}

#[test]
fn lftp_mirrors_in_both_directions_and_downloads_in_pieces() {
    let (cluster, clients) = (Cluster::start(), Clients::with_home());
    write_files(&clients, "up");
    lftp(&cluster, &clients, "mirror -R --parallel=4 up there");
    assert_files("mirror -R", stored(&cluster, "there"));
    lftp(&cluster, &clients, "mirror --parallel=4 there down");
    assert_files("mirror", |name| clients.read(&format!("down/{name}")));
    lftp(&cluster, &clients, "pget -n 5 there/inner/large.bin -o pieces.bin");
    assert_eq!(sha256(clients.read("pieces.bin")), sha256(bytes(1, 20 << 20)));
    let again = lftp(&cluster, &clients, "mirror -R --verbose --only-newer up there");
    assert!(!again.contains("Transferring"), "nothing is newer: {again}");
    lftp(&cluster, &clients, "mv there/empty there/renamed; rm -r there");
    assert!(!cluster.storage().join("demo/there").exists());
}

#[test]
fn rclone_copies_checks_and_deletes_a_tree() {
    let (cluster, clients) = (Cluster::start(), Clients::with_home());
    write_files(&clients, "up");
    let address = cluster.address();
    let password = clients.run("rclone", ["obscure", "secret"]).text();
    let remote = format!(
        ":ftp,host='{}',port={},user=demo,pass='{}':there",
        address.ip(),
        address.port(),
        password.trim()
    );
    let run = |arguments: &[&str]| clients.run("rclone", [&["--retries=1"], arguments].concat()).text();
    run(&["copy", "up", &remote]);
    assert_files("copy", stored(&cluster, "there"));
    run(&["check", "--download", "up", &remote]);
    run(&["sync", &remote, "down"]);
    assert_files("sync", |name| clients.read(&format!("down/{name}")));
    assert_eq!(run(&["lsf", &remote]).lines().collect::<Vec<_>>(), ["empty", "inner/", "small file.txt"]);
    run(&["moveto", &format!("{remote}/empty"), &format!("{remote}/inner/moved")]);
    run(&["purge", &remote]);
    assert!(!cluster.storage().join("demo/there").exists());
}

#[test]
fn wget_downloads_a_tree_and_resumes_a_partial_file() {
    let (cluster, clients) = (Cluster::start(), Clients::with_home());
    let mut session = cluster.login();
    for directory in ["there", "there/inner", "there/inner/deeper"] {
        session.command(&format!("MKD {directory}"), 257);
    }
    for (name, content) in files() {
        session.store(&format!("there/{name}"), &content);
    }
    let common = ["-nv", "--tries=1", "--timeout=30"];
    let wget = |options: &[&str], path: &str| {
        let url = cluster.url("demo", path);
        clients.run("wget", [&common[..], options, &[&url]].concat())
    };
    wget(&["-r", "-nH"], "/there/");
    assert_files("wget -r", |name| clients.read(&format!("there/{name}")));
    clients.write("large.bin", &bytes(1, 20 << 20)[..3_000_000]);
    wget(&["-c"], "/there/inner/large.bin");
    assert_eq!(sha256(clients.read("large.bin")), sha256(bytes(1, 20 << 20)));
}

#[test]
fn ncftp_uploads_lists_and_downloads() {
    let (cluster, clients) = (Cluster::start(), Clients::with_home());
    write_files(&clients, "up");
    let (host, port) = (cluster.address().ip().to_string(), cluster.address().port().to_string());
    let login = ["-u", "demo", "-p", "secret", "-P", &port, "-V"];
    clients.run("ncftpput", [&login[..], &["-m", "-R", &host, "there", "up"]].concat());
    assert_files("ncftpput", stored(&cluster, "there/up"));
    let login_to_list = ["-u", "demo", "-p", "secret", "-P", &port];
    let url = format!("ftp://{host}/there/up/");
    let names = clients.run("ncftpls", [&login_to_list[..], &["-1", &url]].concat()).text();
    assert_eq!(names.lines().collect::<Vec<_>>(), ["empty", "inner", "small file.txt"]);
    clients.write("down/.keep", "");
    clients.run("ncftpget", [&login[..], &["-R", &host, "down", "there/up"]].concat());
    assert_files("ncftpget", |name| clients.read(&format!("down/up/{name}")));
}

#[test]
fn python_ftplib_runs_all_commands_that_it_knows() {
    let (cluster, clients) = (Cluster::start(), Clients::with_home());
    let script = clients.write("client.py", include_str!("clients/ftplib_client.py"));
    let address = cluster.address();
    let arguments = [script.display().to_string(), address.ip().to_string(), address.port().to_string()];
    let run = clients.run("python3", arguments);
    assert_eq!(run.text().trim(), "all right");
}
