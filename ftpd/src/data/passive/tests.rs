//! Tests of reservations of passive ports, without sockets.

use std::net::Ipv4Addr;

use common::{
    node::NodeRecord,
    passive::{BlockState, OwnBlock},
    session::SessionId,
};
use tokio::sync::watch;

use super::{
    cooling::{COOL_DOWN, MAX_COOLING},
    own_ports::{hand_over, still_given_up},
    *,
};

const SHORT: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(20);
const ANNA: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const BERT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

fn of(address: IpAddr) -> Arc<SessionIdentity> {
    Arc::new(SessionIdentity::new(SessionId::random(), "u".to_owned(), address))
}

/// How long a reservation may wait for its transfer command.
const UNUSED: Duration = Duration::from_secs(30);

fn user(name: &str) -> Arc<SessionIdentity> {
    Arc::new(SessionIdentity::new(SessionId::random(), name.to_owned(), ANNA))
}

fn registry(from: u16, to: u16) -> Registry {
    Registry::local(NodeRecord::new("a".parse().unwrap(), 1, PortRange::new(from, to).unwrap()))
}

fn ports(from: u16, to: u16) -> PassivePorts {
    PassivePorts::new(&registry(from, to), UNUSED)
}

fn block(from: u16, to: u16, state: BlockState) -> OwnBlock {
    OwnBlock { ports: PortRange::new(from, to).unwrap(), generation: 1, state }
}

/// The ports of a node with these blocks, and a handle that changes the blocks.
fn with_blocks(blocks: &[OwnBlock]) -> (PassivePorts, watch::Sender<Arc<[OwnBlock]>>) {
    let (sender, blocks) = watch::channel(Arc::from(blocks));
    (PassivePorts::of(OwnPorts { blocks, registry: registry(1, 1) }, UNUSED), sender)
}

#[tokio::test(start_paused = true)]
async fn a_port_is_shared_by_addresses_but_not_by_sessions_of_one_address() {
    let ports = ports(50000, 50001);
    let first = ports.reserve(&of(ANNA), None, SHORT).await.unwrap();
    let second = ports.reserve(&of(ANNA), None, SHORT).await.unwrap();
    assert_ne!(first.port(), second.port());
    assert!(ports.reserve(&of(ANNA), None, SHORT).await.is_none());
    assert!(ports.reserve(&of(BERT), None, SHORT).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_waiting_session_gets_the_port_that_becomes_free() {
    let ports = Arc::new(ports(50000, 50000));
    let taken = ports.reserve(&of(ANNA), None, SHORT).await.unwrap();
    let waiting = tokio::spawn({
        let ports = Arc::clone(&ports);
        async move { ports.reserve(&of(ANNA), None, LONG).await.map(|r| r.port()) }
    });
    tokio::task::yield_now().await;
    drop(taken);
    assert_eq!(waiting.await.unwrap(), Some(50000));
}

#[tokio::test(start_paused = true)]
async fn a_released_port_is_not_reserved_for_its_address_for_a_while() {
    let ports = ports(50000, 50002);
    let given_up = ports.reserve(&of(ANNA), None, SHORT).await.unwrap().port();
    for _ in 0..20 {
        let next = ports.reserve(&of(ANNA), None, SHORT).await.unwrap();
        assert_ne!(next.port(), given_up);
        // Simulates that its connection has come.
        ports.table.waiting().sessions.clear();
    }
    let _others = [
        ports.reserve(&of(ANNA), None, SHORT).await.unwrap(),
        ports.reserve(&of(ANNA), None, SHORT).await.unwrap(),
    ];
    assert!(ports.reserve(&of(ANNA), None, SHORT).await.is_none());
    let start = Instant::now();
    let again = ports.reserve(&of(ANNA), None, LONG).await.unwrap();
    assert_eq!(again.port(), given_up);
    assert!(start.elapsed() < COOL_DOWN);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_releases_many_ports_uses_bounded_memory_and_affects_no_other_address() {
    let ports = ports(1, 65535);
    let of_bert = ports.reserve(&of(BERT), None, SHORT).await.unwrap();
    let port = of_bert.port();
    drop(of_bert);
    let mut reservations = Vec::new();
    for _ in 0..MAX_COOLING + 100 {
        reservations.push(ports.reserve(&of(ANNA), None, SHORT).await.unwrap());
    }
    drop(reservations);
    assert_eq!(ports.table.waiting().cooling.count(), MAX_COOLING + 1);
    assert!(ports.table.waiting().cooling.until(port, BERT).is_some());
    tokio::time::advance(COOL_DOWN).await;
    drop(ports.reserve(&of(ANNA), None, SHORT).await.unwrap());
    assert_eq!(ports.table.waiting().cooling.count(), 1);
    assert_eq!(ports.table.waiting().cooling.remembered(), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_reservation_without_a_transfer_is_given_up_while_another_session_waits() {
    let ports = ports(50000, 50001);
    let same = user("ann");
    let unused = ports.reserve(&same, None, SHORT).await.unwrap();
    let used = ports.reserve(&same, None, SHORT).await.unwrap();
    let port = unused.port();
    let accepting = tokio::spawn(used.accept());
    tokio::task::yield_now().await;
    assert!(ports.reserve(&same, None, UNUSED - SHORT).await.is_none());
    assert!(!unused.is_given_up());
    let next = ports.reserve(&same, None, 2 * COOL_DOWN).await.unwrap();
    assert_eq!(next.port(), port);
    assert!(unused.is_given_up() && !next.is_given_up());
    assert!(unused.accept().await.is_none());
    assert!(!accepting.is_finished());
    assert!(!next.is_given_up());
}

#[tokio::test(start_paused = true)]
async fn a_user_with_more_than_half_of_the_ports_loses_some_to_another_user() {
    let ports = ports(50000, 50003);
    let (ann, bert) = (user("ann"), user("bert"));
    let mut of_ann = Vec::new();
    for _ in 0..4 {
        of_ann.push(ports.reserve(&ann, None, SHORT).await.unwrap());
    }
    // One of the reservations has its transfer command.
    let last = of_ann.pop().unwrap();
    let accepting = tokio::spawn(last.accept());
    let mut of_bert = Vec::new();
    let start = Instant::now();
    for given_up in 1..=2 {
        of_bert.push(ports.reserve(&bert, None, 3 * COOL_DOWN).await.unwrap());
        assert_eq!(of_ann.iter().filter(|reservation| reservation.is_given_up()).count(), given_up);
    }
    assert!(start.elapsed() < 4 * COOL_DOWN);
    // Half of the ports stay with ann.
    assert!(ports.reserve(&bert, None, 2 * COOL_DOWN).await.is_none());
    assert!(!accepting.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_user_with_half_of_the_ports_gets_no_more_while_another_user_waits() {
    let ports = Arc::new(ports(50000, 50003));
    let (ann, bert) = (user("ann"), user("bert"));
    let mut of_ann = Vec::new();
    for _ in 0..4 {
        of_ann.push(ports.reserve(&ann, None, SHORT).await.unwrap());
    }
    let waiting = tokio::spawn({
        let ports = Arc::clone(&ports);
        async move { ports.reserve(&bert, None, LONG).await }
    });
    tokio::task::yield_now().await;
    drop(of_ann.pop());
    // The port would be free if bert did not wait.
    assert!(ports.reserve(&ann, None, COOL_DOWN + SHORT).await.is_none());
    assert!(waiting.await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn an_old_reservation_does_not_release_the_port_of_its_successor() {
    let ports = ports(50000, 50000);
    let old = ports.reserve(&of(ANNA), None, SHORT).await.unwrap();
    // Simulates that the connection has come: the entry is gone, the reservation still lives.
    ports.table.waiting().sessions.clear();
    let new = ports.reserve(&of(ANNA), None, SHORT).await.unwrap();
    drop(old);
    assert!(ports.table.waiting().cooling.count() == 0);
    assert!(ports.reserve(&of(ANNA), None, SHORT).await.is_none());
    drop(new);
    assert!(ports.reserve(&of(ANNA), None, LONG).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_block_that_is_given_up_gets_no_reservation() {
    let (ports, blocks) =
        with_blocks(&[block(50000, 50000, BlockState::Leased), block(50005, 50009, BlockState::GivenUp)]);
    for _ in 0..20 {
        let reservation = ports.reserve(&of(ANNA), None, SHORT).await.unwrap();
        assert_eq!(reservation.port(), 50000);
        ports.table.waiting().sessions.clear();
    }
    let _only = ports.reserve(&of(ANNA), None, SHORT).await.unwrap();
    assert!(ports.reserve(&of(ANNA), None, SHORT).await.is_none());
    blocks.send_replace(Arc::default());
    assert!(ports.reserve(&of(BERT), None, SHORT).await.is_none());
    assert!(ports.shortage().contains("passive_block_ports"), "{}", ports.shortage());
}

#[tokio::test(start_paused = true)]
async fn a_waiting_session_gets_a_port_of_a_new_block() {
    let (ports, blocks) = with_blocks(&[]);
    let ports = Arc::new(ports);
    let waiting = tokio::spawn({
        let ports = Arc::clone(&ports);
        async move { ports.reserve(&of(ANNA), None, LONG).await.map(|r| r.port()) }
    });
    tokio::task::yield_now().await;
    let begin = Instant::now();
    blocks.send_replace(Arc::from([block(50005, 50005, BlockState::Leased)]));
    assert_eq!(waiting.await.unwrap(), Some(50005));
    assert!(begin.elapsed() < SHORT);
}

#[tokio::test(start_paused = true)]
async fn a_block_is_handed_over_when_its_reservations_have_ended_and_cooled_down() {
    let (ports, blocks) = with_blocks(&[block(50000, 50000, BlockState::Leased)]);
    let reservation = ports.reserve(&of(ANNA), None, SHORT).await.unwrap();
    let given_up = [block(50000, 50000, BlockState::GivenUp)];
    blocks.send_replace(Arc::from(given_up));
    let mut list = still_given_up(&given_up, Vec::new(), Instant::now());
    let is_released = |given_up: &mut Vec<_>| {
        hand_over(given_up, &ports.own.registry, &ports.table, UNUSED);
        given_up[0].is_released
    };
    assert!(!is_released(&mut list), "a session waits at the port");
    drop(reservation);
    assert!(!is_released(&mut list), "the connection may still arrive");
    tokio::time::advance(COOL_DOWN).await;
    assert!(is_released(&mut list));
}

#[tokio::test(start_paused = true)]
async fn reservations_end_when_their_block_was_given_up_for_longer_than_the_limit() {
    let (ports, blocks) = with_blocks(&[block(50000, 50004, BlockState::Leased)]);
    let reservation = ports.reserve(&of(ANNA), None, SHORT).await.unwrap();
    blocks.send_replace(Arc::from([block(50000, 50004, BlockState::GivenUp)]));
    tokio::time::sleep(UNUSED - SHORT).await;
    assert!(!reservation.is_given_up());
    tokio::time::sleep(COOL_DOWN).await;
    assert!(reservation.is_given_up());
    assert!(reservation.accept().await.is_none());
}
