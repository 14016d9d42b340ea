//! Tests of slots: bounds, order of service, and work that hangs.

use std::pin::pin;

use proptest::prelude::*;
use tokio::time::{advance, timeout};

use super::*;

const PATIENCE: Duration = Duration::from_secs(2);

fn slots(all: u32, per_user: u32, per_filesystem: u32) -> Arc<Slots> {
    let settings = SlotSettings { all: "all", per_user: "per_user", per_filesystem: "per_filesystem" };
    Slots::new(SlotBounds { all, per_user, per_filesystem, settings })
}

fn request(user: &str, filesystem: u64) -> SlotRequest {
    SlotRequest { user: user.into(), filesystem, per_user: None, task: None }
}

/// Takes all slots that `user` can get.
fn fill(slots: &Arc<Slots>, user: &str, filesystem: u64) -> Vec<Slot> {
    std::iter::from_fn(|| slots.try_take(&request(user, filesystem))).collect()
}

/// Returns true if `future` still waits after all ready tasks have run.
async fn waits<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
    timeout(Duration::ZERO, future).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn a_user_gets_at_most_its_share_and_others_still_get_slots() {
    let slots = slots(16, 4, u32::MAX);
    let of_a = fill(&slots, "a", 1);
    assert_eq!(of_a.len(), 4);
    assert_eq!(slots.obstacle(&request("a", 1)), Some("per_user"));
    assert_eq!(fill(&slots, "b", 1).len(), 4);
    drop(of_a);
    assert_eq!(fill(&slots, "a", 1).len(), 4);
}

#[tokio::test(start_paused = true)]
async fn the_last_quarter_is_kept_for_users_without_a_slot() {
    let slots = slots(16, 16, u32::MAX);
    let of_a = fill(&slots, "a", 1);
    assert_eq!(of_a.len(), 12);
    assert_eq!(slots.obstacle(&request("a", 1)), Some("all"));
    let others: Vec<_> = ["b", "c", "d", "e"].map(|user| fill(&slots, user, 1)).into();
    assert!(others.iter().all(|slots| slots.len() == 1), "one for each");
    assert_eq!(fill(&slots, "f", 1).len(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_account_can_have_its_own_bound() {
    let slots = slots(16, 4, u32::MAX);
    let with = |bound| SlotRequest { per_user: Some(bound), ..request("a", 1) };
    let held: Vec<_> = std::iter::from_fn(|| slots.try_take(&with(6))).collect();
    assert_eq!(held.len(), 6);
    assert!(slots.try_take(&SlotRequest { per_user: Some(0), ..request("b", 1) }).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_single_file_system_may_use_all_slots_and_one_of_several_only_its_share() {
    let slots = slots(16, 16, 8);
    let alone = fill(&slots, "a", 1);
    assert_eq!(alone.len(), 12);
    drop(alone);
    slots.note_filesystem(2);
    let shared = fill(&slots, "a", 1);
    assert_eq!(shared.len(), 8);
    assert_eq!(slots.obstacle(&request("a", 1)), Some("per_filesystem"));
    assert!(slots.try_take(&request("b", 1)).is_none(), "users of the full file system wait");
    assert_eq!(fill(&slots, "b", 2).len(), 4, "users of another do not");
}

#[tokio::test(start_paused = true)]
async fn a_file_system_without_recent_work_no_longer_counts() {
    let slots = slots(16, 16, 8);
    slots.note_filesystem(2);
    advance(FORGET_FILESYSTEM + PATIENCE).await;
    drop(slots.try_take(&request("a", 1)));
    slots.inspect(PATIENCE);
    assert_eq!(fill(&slots, "a", 1).len(), 12);
}

#[tokio::test(start_paused = true)]
async fn users_with_fewer_slots_are_served_first_and_equal_users_in_turn() {
    let slots = slots(4, 4, u32::MAX);
    let mut of_a = fill(&slots, "a", 1);
    let of_b = slots.try_take(&request("b", 1)).unwrap();
    let mut greedy = pin!(slots.take(request("a", 1)));
    assert!(waits(greedy.as_mut()).await);
    let mut newcomer = pin!(slots.take(request("c", 1)));
    let mut second = pin!(slots.take(request("d", 1)));
    assert!(waits(newcomer.as_mut()).await && waits(second.as_mut()).await);
    of_a.pop();
    let of_c = newcomer.await;
    assert!(waits(greedy.as_mut()).await && waits(second.as_mut()).await, "one slot, one waiter");
    drop(of_b);
    second.await;
    assert!(waits(greedy.as_mut()).await, "three of four slots are taken, and the last is kept");
    drop(of_c);
    drop(of_a);
    greedy.await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_leaves_its_queue_and_its_slot() {
    let slots = slots(1, 1, u32::MAX);
    let held = slots.try_take(&request("a", 1)).unwrap();
    let mut first = Box::pin(slots.take(request("b", 1)));
    let mut second = pin!(slots.take(request("b", 1)));
    assert!(waits(first.as_mut()).await && waits(second.as_mut()).await);
    drop(held);
    // The first request has been granted the slot, but its future was not polled yet.
    drop(first);
    drop(second.await);
    let inner = slots.inner();
    assert_eq!((inner.all.running, inner.users.len(), inner.queues.len(), inner.order.len()), (0, 0, 0, 0));
}

/// An ordinary burst: many sessions of one user, with short operations.
#[tokio::test(start_paused = true)]
async fn a_burst_of_short_operations_waits_and_none_is_refused() {
    let slots = slots(8, 2, u32::MAX);
    let tasks = (0..500).map(|_| {
        let slots = Arc::clone(&slots);
        tokio::spawn(async move {
            let slot = slots.take_unless_stuck(request("a", 1), PATIENCE).await;
            // In all, the operations take 250 times as long as one: much longer than the patience.
            tokio::time::sleep(Duration::from_millis(100)).await;
            slot.map(drop).map_err(|stuck| stuck.to_string())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap().unwrap();
    }
}

/// Requests that wait are refused after the patience, later requests at once, and requests are served again
/// once one operation ends.
#[tokio::test(start_paused = true)]
async fn a_share_full_of_hanging_operations_refuses_new_ones_at_once_and_other_users_are_served() {
    let slots = slots(8, 2, u32::MAX);
    let mut hanging = fill(&slots, "a", 1);
    let begun = Instant::now();
    let refused = slots.take_unless_stuck(request("a", 1), PATIENCE).await.err().unwrap();
    assert_eq!((refused.scope, refused.setting, refused.running), (SlotScope::User, "per_user", 2));
    assert_eq!(begun.elapsed(), PATIENCE);
    advance(Duration::from_secs(60)).await;
    let begun = Instant::now();
    let refused = slots.take_unless_stuck(request("a", 1), PATIENCE).await.err().unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    let text = refused.to_string();
    assert!(text.contains("2 file operations of this user run") && text.contains("runs for 62 s"), "{text}");
    assert!(slots.take_unless_stuck(request("b", 1), PATIENCE).await.is_ok());
    hanging.pop();
    assert!(slots.take_unless_stuck(request("a", 1), PATIENCE).await.is_ok());
    assert!(slots.inner().queues.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_while_other_work_ends_and_is_refused_once_none_does() {
    let slots = slots(8, 2, u32::MAX);
    let _hangs = slots.try_take(&request("a", 1)).unwrap();
    let moving = {
        let slots = Arc::clone(&slots);
        tokio::spawn(async move {
            for _ in 0..20 {
                let slot = slots.take(request("a", 1)).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
                drop(slot);
            }
        })
    };
    tokio::task::yield_now().await;
    for _ in 0..3 {
        assert!(slots.take_unless_stuck(request("a", 1), PATIENCE).await.is_ok());
    }
    moving.await.unwrap();
    let hangs = slots.try_take(&request("a", 1)).unwrap();
    advance(PATIENCE).await;
    assert!(slots.take_unless_stuck(request("a", 1), PATIENCE).await.is_err());
    drop(hangs);
}

#[tokio::test(start_paused = true)]
async fn an_inspection_reports_each_hanging_operation_once_and_a_stuck_pool() {
    let slots = slots(4, 4, u32::MAX);
    let limit = Duration::from_secs(10);
    assert_eq!(slots.inspect(limit).oldest, Duration::ZERO);
    let _first = slots.try_take(&request("a", 1)).unwrap();
    advance(Duration::from_secs(5)).await;
    let _second = slots.try_take(&request("b", 1)).unwrap();
    advance(Duration::from_secs(5)).await;
    let found = slots.inspect(limit);
    assert_eq!((found.running, found.oldest, found.hanging.len(), found.stuck), (2, limit, 1, None));
    assert_eq!(slots.inspect(limit).hanging.len(), 0);
    advance(Duration::from_secs(5)).await;
    assert_eq!(slots.inspect(limit).hanging.len(), 1);
    let _third = slots.try_take(&request("c", 1)).unwrap();
    let fourth = slots.try_take(&request("d", 1)).unwrap();
    assert_eq!(slots.inspect(limit).stuck, None, "the slots have just been taken");
    advance(limit).await;
    assert_eq!(slots.inspect(limit).stuck, Some(limit));
    drop(fourth);
    assert_eq!(slots.inspect(limit).stuck, None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// For any sequence of requests: no bound is exceeded, no request waits while a slot is free for it, and
    /// nothing is left at the end.
    #[test]
    fn bounds_hold_and_no_slot_is_idle_while_a_request_could_get_it(
        all in 1u32..12,
        per_user in 1u32..6,
        per_filesystem in 1u32..8,
        steps in proptest::collection::vec((0u8..4, 0u8..4, 0u64..3, 0usize..8), 1..120),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let slots = slots(all, per_user, per_filesystem);
            let mut held = Vec::new();
            let mut waiting = Vec::new();
            for (kind, user, filesystem, which) in steps {
                let request = request(&format!("user{user}"), filesystem);
                match kind {
                    0 => held.extend(slots.try_take(&request)),
                    1 => {
                        let slots = Arc::clone(&slots);
                        waiting.push(Box::pin(async move { slots.take(request).await }));
                    }
                    2 if !held.is_empty() => drop(held.swap_remove(which % held.len())),
                    3 if !waiting.is_empty() => drop(waiting.swap_remove(which % waiting.len())),
                    _ => {}
                }
                let mut still = Vec::new();
                for mut future in waiting {
                    match timeout(Duration::ZERO, future.as_mut()).await {
                        Ok(slot) => held.push(slot),
                        Err(_) => still.push(future),
                    }
                }
                waiting = still;
                let inner = slots.inner();
                assert_eq!(inner.all.running as usize, held.len());
                assert!(inner.all.running <= all);
                assert!(inner.users.values().all(|usage| usage.running <= per_user));
                let counted: u32 = inner.users.values().map(|usage| usage.running).sum();
                assert_eq!(counted, inner.all.running);
                let fronts = inner.queues.values().filter_map(VecDeque::front);
                assert!(fronts.into_iter().all(|waiter| !inner.may_start(&slots.bounds, &waiter.request)));
                assert_eq!(inner.queues.len(), inner.order.len());
            }
            drop(held);
            // Polls all of them: any may have been granted a slot.
            for _ in 0..200 {
                let mut still = Vec::new();
                for mut future in waiting {
                    if timeout(Duration::ZERO, future.as_mut()).await.is_err() {
                        still.push(future);
                    }
                }
                waiting = still;
            }
            assert!(waiting.is_empty(), "a slot comes free for each");
            let inner = slots.inner();
            assert_eq!((inner.all.running, inner.users.len(), inner.queues.len()), (0, 0, 0));
        });
    }
}
