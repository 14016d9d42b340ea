use std::pin::pin;

use proptest::prelude::*;
use tokio::time::{advance, timeout};

use super::*;

const PATIENCE: Duration = Duration::from_secs(2);

fn places(all: u32, per_user: u32, per_filesystem: u32) -> Arc<Places> {
    let settings = Settings { all: "all", per_user: "per_user", per_filesystem: "per_filesystem" };
    Places::new(Bounds { all, per_user, per_filesystem, settings })
}

fn claim(user: &str, filesystem: u64) -> Claim {
    Claim { user: user.into(), filesystem, per_user: None, task: None }
}

/// Takes as many places as there are for `user`.
fn fill(places: &Arc<Places>, user: &str, filesystem: u64) -> Vec<Place> {
    std::iter::from_fn(|| places.try_take(&claim(user, filesystem))).collect()
}

/// Whether `future` still waits after everything that could run has run.
async fn waits<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
    timeout(Duration::ZERO, future).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn one_user_holds_no_more_than_the_share_and_others_have_places() {
    let places = places(16, 4, u32::MAX);
    let of_a = fill(&places, "a", 1);
    assert_eq!(of_a.len(), 4);
    assert_eq!(places.obstacle(&claim("a", 1)), Some("per_user"));
    assert_eq!(fill(&places, "b", 1).len(), 4);
    drop(of_a);
    assert_eq!(fill(&places, "a", 1).len(), 4);
}

#[tokio::test(start_paused = true)]
async fn the_last_quarter_is_for_users_who_hold_no_place() {
    let places = places(16, 16, u32::MAX);
    let of_a = fill(&places, "a", 1);
    assert_eq!(of_a.len(), 12);
    assert_eq!(places.obstacle(&claim("a", 1)), Some("all"));
    let others: Vec<_> = ["b", "c", "d", "e"].map(|user| fill(&places, user, 1)).into();
    assert!(others.iter().all(|places| places.len() == 1), "one for each");
    assert_eq!(fill(&places, "f", 1).len(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_account_may_have_a_bound_of_its_own() {
    let places = places(16, 4, u32::MAX);
    let with = |bound| Claim { per_user: Some(bound), ..claim("a", 1) };
    let held: Vec<_> = std::iter::from_fn(|| places.try_take(&with(6))).collect();
    assert_eq!(held.len(), 6);
    assert!(places.try_take(&Claim { per_user: Some(0), ..claim("b", 1) }).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_file_system_alone_may_use_all_places_and_one_of_several_only_its_share() {
    let places = places(16, 16, 8);
    let alone = fill(&places, "a", 1);
    assert_eq!(alone.len(), 12);
    drop(alone);
    places.note_filesystem(2);
    let shared = fill(&places, "a", 1);
    assert_eq!(shared.len(), 8);
    assert_eq!(places.obstacle(&claim("a", 1)), Some("per_filesystem"));
    assert!(places.try_take(&claim("b", 1)).is_none(), "users of the full file system wait");
    assert_eq!(fill(&places, "b", 2).len(), 4, "users of another do not");
}

#[tokio::test(start_paused = true)]
async fn a_file_system_that_is_no_longer_used_leaves_its_share_to_the_others() {
    let places = places(16, 16, 8);
    places.note_filesystem(2);
    advance(FORGET_FILESYSTEM + PATIENCE).await;
    drop(places.try_take(&claim("a", 1)));
    places.inspect(PATIENCE);
    assert_eq!(fill(&places, "a", 1).len(), 12);
}

#[tokio::test(start_paused = true)]
async fn who_holds_fewer_places_is_served_first_and_equals_in_turn() {
    let places = places(4, 4, u32::MAX);
    let mut of_a = fill(&places, "a", 1);
    let of_b = places.try_take(&claim("b", 1)).unwrap();
    let mut greedy = pin!(places.take(claim("a", 1)));
    assert!(waits(greedy.as_mut()).await);
    let mut newcomer = pin!(places.take(claim("c", 1)));
    let mut second = pin!(places.take(claim("d", 1)));
    assert!(waits(newcomer.as_mut()).await && waits(second.as_mut()).await);
    of_a.pop();
    let of_c = newcomer.await;
    assert!(waits(greedy.as_mut()).await && waits(second.as_mut()).await, "one place, one waiter");
    drop(of_b);
    second.await;
    assert!(waits(greedy.as_mut()).await, "three of four places are taken, and the last is kept");
    drop(of_c);
    drop(of_a);
    greedy.await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_leaves_gives_its_turn_and_its_place_up() {
    let places = places(1, 1, u32::MAX);
    let held = places.try_take(&claim("a", 1)).unwrap();
    let mut first = Box::pin(places.take(claim("b", 1)));
    let mut second = pin!(places.take(claim("b", 1)));
    assert!(waits(first.as_mut()).await && waits(second.as_mut()).await);
    drop(held);
    // The first has been granted the place, and does not know yet.
    drop(first);
    drop(second.await);
    let state = places.state();
    assert_eq!((state.all.running, state.users.len(), state.queues.len(), state.order.len()), (0, 0, 0, 0));
}

/// The normal burst: many sessions of a user, each operation short.
#[tokio::test(start_paused = true)]
async fn a_burst_of_short_operations_waits_its_turn_and_none_is_refused() {
    let places = places(8, 2, u32::MAX);
    let tasks = (0..500).map(|_| {
        let places = Arc::clone(&places);
        tokio::spawn(async move {
            let place = places.take_while_moving(claim("a", 1), PATIENCE).await;
            // In all they take 250 times as long as this: much longer than the patience.
            tokio::time::sleep(Duration::from_millis(100)).await;
            place.map(drop).map_err(|stuck| stuck.to_string())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap().unwrap();
    }
}

/// The share is full of operations that hang: those that wait are refused after the patience, those that
/// come later at once, and all work again when one operation ends.
#[tokio::test(start_paused = true)]
async fn a_share_full_of_hanging_operations_refuses_at_once_and_others_are_not_touched() {
    let places = places(8, 2, u32::MAX);
    let mut hanging = fill(&places, "a", 1);
    let begun = Instant::now();
    let refused = places.take_while_moving(claim("a", 1), PATIENCE).await.err().unwrap();
    assert_eq!((refused.scope, refused.setting, refused.running), (Scope::User, "per_user", 2));
    assert_eq!(begun.elapsed(), PATIENCE);
    advance(Duration::from_secs(60)).await;
    let begun = Instant::now();
    let refused = places.take_while_moving(claim("a", 1), PATIENCE).await.err().unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    let text = refused.to_string();
    assert!(text.contains("2 file operations of this user run") && text.contains("runs for 62 s"), "{text}");
    assert!(places.take_while_moving(claim("b", 1), PATIENCE).await.is_ok());
    hanging.pop();
    assert!(places.take_while_moving(claim("a", 1), PATIENCE).await.is_ok());
    assert!(places.state().queues.is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_while_others_move_on_is_refused_only_when_they_stop() {
    let places = places(8, 2, u32::MAX);
    let _hangs = places.try_take(&claim("a", 1)).unwrap();
    let moving = {
        let places = Arc::clone(&places);
        tokio::spawn(async move {
            for _ in 0..20 {
                let place = places.take(claim("a", 1)).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
                drop(place);
            }
        })
    };
    tokio::task::yield_now().await;
    for _ in 0..3 {
        assert!(places.take_while_moving(claim("a", 1), PATIENCE).await.is_ok());
    }
    moving.await.unwrap();
    let hangs = places.try_take(&claim("a", 1)).unwrap();
    advance(PATIENCE).await;
    assert!(places.take_while_moving(claim("a", 1), PATIENCE).await.is_err());
    drop(hangs);
}

#[tokio::test(start_paused = true)]
async fn the_watchdog_tells_once_of_each_operation_that_hangs_and_of_a_stuck_pool() {
    let places = places(4, 4, u32::MAX);
    let limit = Duration::from_secs(10);
    assert_eq!(places.inspect(limit).oldest, Duration::ZERO);
    let _first = places.try_take(&claim("a", 1)).unwrap();
    advance(Duration::from_secs(5)).await;
    let _second = places.try_take(&claim("b", 1)).unwrap();
    advance(Duration::from_secs(5)).await;
    let found = places.inspect(limit);
    assert_eq!((found.running, found.oldest, found.hanging.len(), found.stuck), (2, limit, 1, None));
    assert_eq!(places.inspect(limit).hanging.len(), 0);
    advance(Duration::from_secs(5)).await;
    assert_eq!(places.inspect(limit).hanging.len(), 1);
    let _third = places.try_take(&claim("c", 1)).unwrap();
    let fourth = places.try_take(&claim("d", 1)).unwrap();
    assert_eq!(places.inspect(limit).stuck, None, "the places have just been taken");
    advance(limit).await;
    assert_eq!(places.inspect(limit).stuck, Some(limit));
    drop(fourth);
    assert_eq!(places.inspect(limit).stuck, None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes, stays and goes: no bound is passed, no claim waits while a place is free for it,
    /// and nothing is left at the end.
    #[test]
    fn bounds_hold_and_no_place_is_idle_while_a_claim_could_have_it(
        all in 1u32..12,
        per_user in 1u32..6,
        per_filesystem in 1u32..8,
        steps in proptest::collection::vec((0u8..4, 0u8..4, 0u64..3, 0usize..8), 1..120),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let places = places(all, per_user, per_filesystem);
            let mut held = Vec::new();
            let mut waiting = Vec::new();
            for (kind, user, filesystem, which) in steps {
                let claim = claim(&format!("user{user}"), filesystem);
                match kind {
                    0 => held.extend(places.try_take(&claim)),
                    1 => {
                        let places = Arc::clone(&places);
                        waiting.push(Box::pin(async move { places.take(claim).await }));
                    }
                    2 if !held.is_empty() => drop(held.swap_remove(which % held.len())),
                    3 if !waiting.is_empty() => drop(waiting.swap_remove(which % waiting.len())),
                    _ => {}
                }
                let mut still = Vec::new();
                for mut future in waiting {
                    match timeout(Duration::ZERO, future.as_mut()).await {
                        Ok(place) => held.push(place),
                        Err(_) => still.push(future),
                    }
                }
                waiting = still;
                let state = places.state();
                assert_eq!(state.all.running as usize, held.len());
                assert!(state.all.running <= all);
                assert!(state.users.values().all(|usage| usage.running <= per_user));
                let counted: u32 = state.users.values().map(|usage| usage.running).sum();
                assert_eq!(counted, state.all.running);
                let fronts = state.queues.values().filter_map(VecDeque::front);
                assert!(fronts.into_iter().all(|waiter| !state.may_start(&places.bounds, &waiter.claim)));
                assert_eq!(state.queues.len(), state.order.len());
            }
            drop(held);
            // All are asked in turn: a place may have been granted to any of them.
            for _ in 0..200 {
                let mut still = Vec::new();
                for mut future in waiting {
                    if timeout(Duration::ZERO, future.as_mut()).await.is_err() {
                        still.push(future);
                    }
                }
                waiting = still;
            }
            assert!(waiting.is_empty(), "a place comes free for each");
            let state = places.state();
            assert_eq!((state.all.running, state.users.len(), state.queues.len()), (0, 0, 0));
        });
    }
}
