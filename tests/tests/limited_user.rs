//! All limits of a user together in the whole cluster: quota, bandwidth and an access rule, by FTPS through
//! the balancer.

use std::{
    fs,
    io::{Read, Write},
    time::{Duration, Instant},
};

use cluster_tests::{
    authd::hash_password,
    cluster::Cluster,
    content::{bytes, sha256},
    eventually,
    tls::{Authority, SecureDialogue, TlsStream, end},
};

/// Quota of the home, in bytes.
const QUOTA: usize = 1_000_000;

/// Bytes per second of all sessions together.
const RATE: usize = 400_000;

/// Minimum duration of a transfer of `bytes`, without the initial burst and the last piece.
fn at_rate(bytes: usize) -> Duration {
    Duration::from_secs_f64(bytes as f64 / RATE as f64 - 0.4)
}

fn session(authority: &Authority, cluster: &Cluster) -> SecureDialogue {
    let mut session = SecureDialogue::explicit(&authority.client(), cluster.address());
    session.login("partner", "secret");
    session
}

fn used(session: &mut SecureDialogue) -> String {
    session.command("SITE QUOTA", 211).text()
}

/// Reads to the end of the connection; a reset counts as the end.
fn rest(mut data: TlsStream) -> usize {
    let mut received = Vec::new();
    let _ = data.read_to_end(&mut received);
    received.len()
}

#[test]
fn quota_bandwidth_and_access_rules_apply_together_to_encrypted_transfers() {
    let authority = Authority::new();
    let users = format!(
        "[users.partner]\npassword_hash = \"{}\"\nhome = \"/partner\"\n\
         quota = {{ bytes = {QUOTA} }}\nbandwidth = {{ upload = {RATE}, download = {RATE} }}\n\
         folders = [{{ path = \"/shared\", target = \"/public\" }}]\n\
         [[users.partner.directories]]\npath = \"/incoming\"\n\
         permissions = {{ list = false, download = false, overwrite = false, append = false }}\n",
        hash_password("secret")
    );
    let cluster = Cluster::builder()
        .certificate(&authority.sign("localhost"))
        .setting("tls_data_reuse", "required")
        .users(&users)
        .start();
    let home = cluster.storage().join("partner");
    let mut session = session(&authority, &cluster);
    session.command("MKD incoming", 257);

    // Both directions are paced, and the contents are complete.
    let content = bytes(1, 500_000);
    let begun = Instant::now();
    session.transmit("STOR file", &content);
    assert!(begun.elapsed() >= at_rate(content.len()), "{:?}", begun.elapsed());
    let begun = Instant::now();
    assert_eq!(sha256(session.receive("RETR file")), sha256(&content));
    assert!(begun.elapsed() >= at_rate(content.len()), "{:?}", begun.elapsed());
    // Small files are paced, too: these exceed the rate of one second.
    fs::write(home.join("small"), bytes(2, 16_000)).unwrap();
    let begun = Instant::now();
    (0..40).for_each(|_| assert_eq!(session.receive("RETR small").len(), 16_000));
    assert!(begun.elapsed() >= at_rate(40 * 16_000), "{:?}", begun.elapsed());

    // The drop box accepts new files up to the quota, and can be neither read nor listed.
    session.transmit("STOR incoming/one", &bytes(3, 100_000));
    for refused in ["RETR incoming/one", "STOR incoming/one", "APPE incoming/one", "MLSD incoming"] {
        let _unused = session.epsv();
        session.command(refused, 550);
    }
    let mut data = session.begin("STOR incoming/two");
    let sent = data.write_all(&bytes(4, 600_000));
    let _ = sent.and_then(|()| data.flush());
    session.expect(552);
    rest(data);
    let stored = fs::read(home.join("incoming/two")).unwrap();
    assert_eq!(sha256(&stored), sha256(&bytes(4, 600_000)[..stored.len()]));
    // The small file does not count yet: the test wrote it directly to the storage.
    assert_eq!(stored.len(), QUOTA - 500_000 - 100_000);
    assert!(used(&mut session).contains("1000000 used"), "{}", used(&mut session));

    // Shared folders do not count towards the quota.
    session.transmit("STOR shared/more", &bytes(5, 50_000));
    assert_eq!(fs::read(cluster.storage().join("public/more")).unwrap().len(), 50_000);
    assert!(used(&mut session).contains("1000000 used"));

    // An upload that is aborted while it waits for bandwidth counts with the bytes that arrived.
    session.command("DELE file", 250);
    let mut data = session.begin("STOR broken");
    data.write_all(&bytes(6, 100_000)).unwrap();
    data.flush().unwrap();
    eventually("some of it to arrive", || {
        let arrived = fs::metadata(home.join("broken")).is_ok();
        arrived.then_some(())
    });
    session.send("ABOR");
    session.expect(426);
    session.expect(226);
    rest(data);
    let kept = fs::metadata(home.join("broken")).map_or(0, |found| found.len());
    let expected = format!("{} used", 500_000 + kept);
    eventually("the quota to be told", || used(&mut session).contains(&expected).then_some(()));
    // It is resumed on any node.
    let mut session = self::session(&authority, &cluster);
    session.command(&format!("REST {kept}"), 350);
    session.transmit("STOR broken", &bytes(6, 100_000)[kept as usize..]);
    assert_eq!(sha256(fs::read(home.join("broken")).unwrap()), sha256(bytes(6, 100_000)));
    assert!(used(&mut session).contains("600000 used"), "{}", used(&mut session));
    let mut data = session.begin("STOR empty");
    data.flush().unwrap();
    end(data);
    session.expect(226);
}
