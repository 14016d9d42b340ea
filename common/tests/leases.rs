//! Write leases with a real Redis, also while nodes and Redis fail. Each test starts its own server.

#[allow(dead_code)] // Each file of tests uses a part of it.
mod support;

use std::time::Duration;

use common::{
    registry::{
        LeaseCertainty, LeaseConflict, LeasePath, LeaseRefused, RedisOptions, Registry, RegistryView,
        WriteLease,
    },
    session::SessionId,
};
use redis::cmd;
use support::*;

/// A long lease: nothing expires by itself, and no refresh comes in between.
const LONG: Duration = Duration::from_secs(600);

fn long(redis: &RedisServer) -> RedisOptions {
    RedisOptions { lease: LONG, ..redis.options() }
}

async fn take(registry: &Registry, path: &str) -> Result<WriteLease, LeaseRefused> {
    registry.lease_write(path.as_bytes(), SessionId::random()).await
}

async fn take_tree(registry: &Registry, path: &str) -> Result<WriteLease, LeaseRefused> {
    registry.lease(vec![LeasePath::tree(path.as_bytes())], SessionId::random()).await
}

fn conflict(taken: Result<WriteLease, LeaseRefused>) -> Option<LeaseConflict> {
    match taken {
        Ok(_) => None,
        Err(LeaseRefused::Busy { conflict, .. }) => Some(conflict),
        Err(other) => panic!("{other}"),
    }
}

/// The lease of a path in Redis: its expiry time, its number and the rest of the value.
async fn stored(view: &RegistryView, path: &str) -> (u64, u64, String) {
    let value: String =
        view.link().query(cmd("GET").arg(view.keys().write_lease(path.as_bytes()))).await.unwrap();
    let fields: Vec<&str> = value.splitn(4, ':').collect();
    (fields[1].parse().unwrap(), fields[2].parse().unwrap(), fields[3].to_owned())
}

/// Lets a lease expire, as if the node had not renewed it.
async fn expire(view: &RegistryView, path: &str) {
    let (_, number, rest) = stored(view, path).await;
    set(view, path, 1, number, &rest).await;
}

async fn set(view: &RegistryView, path: &str, ends: u64, number: u64, rest: &str) {
    let key = view.keys().write_lease(path.as_bytes());
    let () = view.link().query(cmd("SET").arg(key).arg(format!("2:{ends}:{number}:{rest}"))).await.unwrap();
}

async fn flush(view: &RegistryView) {
    let () = view.link().query(&cmd("FLUSHALL")).await.unwrap();
}

#[tokio::test]
async fn a_lease_is_lost_if_another_session_had_the_path_also_after_its_release() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", long(&redis)).await;
    let (b, _) = join("b", "50005-50009", long(&redis)).await;
    let view = RegistryView::new(&redis.options());
    for is_dropped in [false, true] {
        let [kept, given] = [take(&a, "kept").await.unwrap(), take(&a, "given").await.unwrap()];
        for path in ["kept", "given"] {
            let before = stored(&view, path).await.1;
            expire(&view, path).await;
            let others = take(&b, path).await.unwrap();
            assert!(others.is_certain());
            assert!(stored(&view, path).await.1 > before, "later takes have higher numbers");
            if is_dropped {
                drop(others);
                let gone = async || take(&b, path).await.ok();
                assert!(eventually("the lease is released", gone).await.give_back().await);
            } else {
                assert!(others.give_back().await);
            }
        }
        assert!(!kept.is_held().await);
        assert!(!given.give_back().await);
    }
}

#[tokio::test]
async fn an_expired_lease_is_kept_if_no_other_session_took_the_path() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", long(&redis)).await;
    let (b, _) = join("b", "50005-50009", long(&redis)).await;
    let view = RegistryView::new(&redis.options());
    let lease = take(&a, "d/file").await.unwrap();
    let number = stored(&view, "d/file").await.1;
    expire(&view, "d/file").await;
    assert!(lease.is_held().await);
    assert_eq!(stored(&view, "d/file").await.1, number);
    assert_eq!(conflict(take(&b, "d/file").await), Some(LeaseConflict::Same));
    // A lease of a tree above takes the path too.
    expire(&view, "d/file").await;
    assert!(take_tree(&b, "d").await.unwrap().give_back().await);
    assert!(!lease.is_held().await);
}

#[tokio::test]
async fn after_a_loss_of_data_holders_keep_their_leases_and_new_ones_are_uncertain_for_a_lease() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", long(&redis)).await;
    let (b, _) = join("b", "50005-50009", long(&redis)).await;
    let view = RegistryView::new(&redis.options());
    let [early, late, given] = [take(&a, "early").await, take(&a, "late").await, take(&a, "given").await];
    let [early, late, given] = [early.unwrap(), late.unwrap(), given.unwrap()];
    assert!(take(&b, "x").await.unwrap().is_certain());
    flush(&view).await;
    assert!(early.is_held().await);
    assert_eq!(conflict(take(&b, "early").await), Some(LeaseConflict::Same));
    // A session that takes the path before its holder renews gets an uncertain lease, and loses it to the
    // holder.
    let hasty = take(&b, "late").await.unwrap();
    assert_eq!(hasty.certainty(), LeaseCertainty::RedisLostData);
    assert!(late.is_held().await);
    assert!(!hasty.is_held().await);
    let free = take(&b, "free").await.unwrap();
    assert!(!free.is_certain() && free.is_held().await);
    let (_, _, rest) = stored(&view, "free").await;
    assert!(rest.starts_with("f? "), "{rest}");
    assert_eq!(conflict(take(&a, "free").await), Some(LeaseConflict::Same));
    assert!(given.give_back().await);
    // Takes of a node that joins later are uncertain too.
    let (c, _) = join("c", "50010-50014", long(&redis)).await;
    assert!(!take(&c, "c").await.unwrap().is_certain());
}

#[tokio::test]
async fn a_certain_lease_from_an_empty_redis_is_not_lost_to_an_earlier_holder() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", long(&redis)).await;
    let view = RegistryView::new(&redis.options());
    // A later one would enter the leases of `a` again.
    first_refresh(&view).await;
    let [held, released] = [take(&a, "held").await.unwrap(), take(&a, "released").await.unwrap()];
    flush(&view).await;
    let (b, _) = join("b", "50005-50009", long(&redis)).await;
    let newer = take(&b, "held").await.unwrap();
    assert!(newer.is_certain(), "an empty cluster does not doubt");
    drop(take(&b, "released").await.unwrap());
    eventually("the release", async || stored(&view, "released").await.2.starts_with('r').then_some(()))
        .await;
    assert!(!held.is_held().await);
    assert!(!released.give_back().await);
    assert!(newer.is_held().await);
    // Now Redis knows that there were nodes before.
    assert!(!take(&b, "other").await.unwrap().is_certain());
}

#[tokio::test]
async fn takes_are_certain_again_one_lease_after_the_loss_of_data() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let view = RegistryView::new(&redis.options());
    drop(take(&a, "x").await.unwrap());
    flush(&view).await;
    assert!(!take(&a, "file").await.unwrap().is_certain());
    let _certain =
        eventually("a certain lease", async || take(&a, "other").await.ok().filter(WriteLease::is_certain))
            .await;
}

/// Waits for the first refresh of a node that has no leases yet.
async fn first_refresh(view: &RegistryView) {
    let epoch = cmd("EXISTS").arg(view.keys().lease_epoch()).to_owned();
    let is_there = async || view.link().query::<bool>(&epoch).await.unwrap().then_some(());
    eventually("the first refresh", is_there).await;
}

#[tokio::test]
async fn a_node_without_leases_reports_the_loss_of_data_too() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let view = RegistryView::new(&redis.options());
    first_refresh(&view).await;
    flush(&view).await;
    assert!(!take(&a, "file").await.unwrap().is_certain());
}

/// A replica may lag, and a snapshot is outdated.
#[tokio::test]
async fn another_server_with_the_data_counts_as_a_loss_of_data() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", long(&redis)).await;
    let (b, _) = join("b", "50005-50009", long(&redis)).await;
    let view = RegistryView::new(&redis.options());
    let lease = take(&a, "file").await.unwrap();
    assert!(take(&b, "x").await.unwrap().is_certain());
    let epoch = view.keys().lease_epoch();
    // As if another Redis process had written these data, without the latest lease.
    let () = view.link().query(cmd("HSET").arg(&epoch).arg("server").arg("another")).await.unwrap();
    set(&view, "file", 1, 1, "f c 1 - 1 1").await;
    let killed = cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes").to_owned();
    let _: u64 = view.link().query(&killed).await.unwrap();
    assert!(!take(&b, "y").await.unwrap().is_certain());
    assert!(lease.is_held().await, "a number from before the loss is lower");
    assert_eq!(conflict(take(&b, "file").await), Some(LeaseConflict::Same));
}

#[tokio::test]
async fn after_an_outage_longer_than_a_lease_only_a_lease_with_a_lock_on_the_storage_is_held() {
    let mut redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", redis.options()).await;
    let [bare, locked] = [take(&a, "bare").await.unwrap(), take(&a, "locked").await.unwrap()];
    locked.rely_on_storage();
    redis.stop();
    tokio::time::sleep(LEASE * 2).await;
    assert!(bare.is_expired() && locked.is_expired());
    redis.restart();
    let view = RegistryView::new(&redis.options());
    eventually("the lease is back", async || stored_if(&view, "locked").await).await;
    assert!(locked.is_held().await && !locked.is_expired());
    assert!(!bare.is_held().await && bare.is_expired());
}

async fn stored_if(view: &RegistryView, path: &str) -> Option<()> {
    let key = view.keys().write_lease(path.as_bytes());
    view.link().query::<bool>(cmd("EXISTS").arg(key)).await.unwrap_or(false).then_some(())
}

#[tokio::test]
async fn a_lease_expires_for_its_holder_before_it_does_in_redis() {
    let mut redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", RedisOptions { lease: LEASE * 4, ..redis.options() }).await;
    let lease = take(&a, "file").await.unwrap();
    let age = lease.age();
    tokio::time::sleep(LEASE * 5).await;
    assert!(!age.is_expired(), "refreshes keep it");
    redis.stop();
    eventually("it is too old", async || age.is_expired().then_some(())).await;
    let unknown = take(&a, "other").await.unwrap();
    assert_eq!(unknown.certainty(), LeaseCertainty::RedisAway);
    assert!(unknown.is_expired() && unknown.is_held().await && lease.is_held().await);
}

#[tokio::test]
async fn a_process_takes_over_leases_of_an_earlier_process_at_the_same_place_only() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", long(&redis)).await;
    let lease = take(&a, "file").await.unwrap();
    let view = RegistryView::new(&redis.options());
    let (ends, number, rest) = stored(&view, "file").await;
    assert!(lease.give_back().await);
    drop(a);
    let (a, _) = join("a", "50000-50004", long(&redis)).await;
    // A process with this name at another place, or at an unknown place.
    for place in ["elsewhere", "-"] {
        let other = rest.replace("boot_namespace_a", place);
        assert_ne!(other, rest);
        set(&view, "file", ends, number, &other).await;
        assert_eq!(conflict(take(&a, "file").await), Some(LeaseConflict::Same), "{place}");
    }
    set(&view, "file", ends, number, &rest).await;
    assert!(take(&a, "file").await.is_ok());
}

#[tokio::test]
async fn a_tree_and_paths_below_it_exclude_each_other_over_all_nodes() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", long(&redis)).await;
    let (b, _) = join("b", "50005-50009", long(&redis)).await;
    let holder = SessionId::random();
    let file = a.lease_write(b"d/e/\xff file", holder).await.unwrap();
    let view = RegistryView::new(&redis.options());
    for (path, expected) in [
        ("d", Some(LeaseConflict::Below)),
        ("", Some(LeaseConflict::Below)),
        ("d/e", Some(LeaseConflict::Below)),
        ("d/", None),
        ("d0", None),
        ("d/e/f", None),
        ("d/e ", None),
    ] {
        assert_eq!(conflict(take_tree(&b, path).await), expected, "{path:?}");
    }
    let refused = take_tree(&b, "d").await.err();
    assert_eq!(refused, Some(LeaseRefused::Busy { holder: Some(holder), conflict: LeaseConflict::Below }));
    assert!(file.give_back().await);

    let tree = take_tree(&b, "d").await.unwrap();
    for (path, expected) in [
        ("d", Some(LeaseConflict::Same)),
        ("d/x", Some(LeaseConflict::Above)),
        ("d/e/f/g/h", Some(LeaseConflict::Above)),
        ("d0", None),
        ("e/d", None),
    ] {
        assert_eq!(conflict(take(&a, path).await), expected, "{path:?}");
    }
    assert!(tree.is_held().await);
    // A lease of several paths takes all of them or none.
    let paths = || vec![LeasePath::file(b"free"), LeasePath::tree(b"d/sub"), LeasePath::file(b"free")];
    let refused = a.lease(paths(), holder).await;
    assert_eq!(conflict(refused), Some(LeaseConflict::Above));
    assert!(stored_if(&view, "free").await.is_none());
    assert!(tree.give_back().await);
    let both = a.lease(paths(), holder).await.unwrap();
    assert!(both.is_held().await);
    assert_eq!(conflict(take(&b, "free").await), Some(LeaseConflict::Same));
    assert_eq!(conflict(take(&b, "d/sub/x").await), Some(LeaseConflict::Above));
    // A lease of several paths is lost if another session takes one of them.
    expire(&view, "free").await;
    let _free = take(&b, "free").await.unwrap();
    assert!(!both.is_held().await);
}

#[tokio::test]
async fn paths_that_dead_nodes_left_in_the_sets_do_not_prevent_leases_and_are_removed() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", long(&redis)).await;
    let view = RegistryView::new(&redis.options());
    let mut add = cmd("ZADD");
    add.arg(view.keys().leased_paths());
    for number in 0..1000 {
        add.arg(0).arg(format!("d/{number}"));
    }
    let _: u64 = view.link().query(&add).await.unwrap();
    let _: u64 =
        view.link().query(cmd("ZADD").arg(view.keys().leased_trees()).arg(0).arg("e")).await.unwrap();
    assert!(take_tree(&a, "d").await.is_ok());
    assert!(take(&a, "e/file").await.is_ok());
    let count = async |key: String| -> u64 { view.link().query(cmd("ZCARD").arg(key)).await.unwrap() };
    eventually("nothing is left", async || {
        (count(view.keys().leased_paths()).await == 0 && count(view.keys().leased_trees()).await == 0)
            .then_some(())
    })
    .await;
    // Takes remove some of these paths even if no leased tree contains them.
    let _: u64 = view.link().query(&add).await.unwrap();
    for _ in 0..10_000 {
        if count(view.keys().leased_paths()).await < 500 {
            return;
        }
        assert!(take(&a, "file").await.unwrap().give_back().await);
    }
    panic!("never");
}

#[tokio::test]
async fn values_of_the_wrong_type_are_replaced() {
    let redis = RedisServer::start();
    let (a, _) = join("a", "50000-50004", long(&redis)).await;
    let view = RegistryView::new(&redis.options());
    let keys = view.keys();
    for key in [keys.lease_epoch(), keys.leased_paths(), keys.leased_trees()] {
        let () = view.link().query(cmd("SET").arg(key).arg("x")).await.unwrap();
        let tree = take_tree(&a, "d").await.unwrap();
        assert!(tree.is_held().await && tree.give_back().await);
    }
}
