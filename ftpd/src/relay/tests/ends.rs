//! The meaning of each end: a FIN arrives as FIN, and everything else as a reset.

use super::{super::PumpEnd, *};

const ROUNDS: usize = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_side_may_end_its_stream_first_and_the_other_direction_goes_on() {
    for splice in [true, false] {
        let Pumped { client, server, pump } = Pumped::start(limits(splice));
        (&client).write_all(b"request").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let (length, end) = read_to_end(&server);
        assert_eq!((length, end.is_ok()), (7, true));
        (&server).write_all(&[1; 1_000_000]).unwrap();
        drop(server);
        let (length, end) = read_to_end(&client);
        assert_eq!((length, end.is_ok()), (1_000_000, true));
        assert_eq!(pump.await.unwrap().end, PumpEnd::Orderly);

        let Pumped { client, server, pump } = Pumped::start(limits(splice));
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&client).0, 0);
        (&client).write_all(&[1; 1_000_000]).unwrap();
        drop(client);
        let (length, end) = read_to_end(&server);
        assert_eq!((length, end.is_ok()), (1_000_000, true));
        assert_eq!(pump.await.unwrap().end, PumpEnd::Orderly);
    }
}

/// The sender writes for a random time, and then resets the connection. The receiver reads at a random pace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_at_a_random_moment_never_arrives_as_an_end() {
    for round in 0..ROUNDS {
        let random = |salt: u32| Duration::from_micros(u64::from(rand::random_range(0..salt)));
        let (of_client, both): (bool, bool) = rand::random();
        let splice = round % 4 != 0;
        let Pumped { client, server, pump } = Pumped::start(limits(splice));
        let (sender, receiver) = if of_client { (client, server) } else { (server, client) };
        let (writes, slow, late) = (random(20_000), random(2_000), random(3_000));
        thread::scope(|scope| {
            // The other direction is busy, too: the pump's writes to the reset socket may get its error
            // first.
            let opposite = both.then(|| {
                let mut opposite = receiver.try_clone().unwrap();
                scope.spawn(move || {
                    loop {
                        if let Err(error) = opposite.write_all(&[3; 50_000]) {
                            break error.kind();
                        }
                    }
                })
            });
            scope.spawn(|| {
                let block = vec![5; rand::random_range(1..200_000)];
                let begin = Instant::now();
                sender.set_nonblocking(true).unwrap();
                while begin.elapsed() < writes {
                    let _ = (&sender).write(&block);
                }
                thread::sleep(late);
                reset(sender);
            });
            let mut block = vec![0; 100_000];
            let read = loop {
                match (&receiver).read(&mut block) {
                    Ok(0) => break None,
                    Ok(_) => thread::sleep(slow),
                    Err(error) => break Some(error.kind()),
                }
            };
            // The kernel reports a reset once: to the read, or to the opposite write.
            let written = opposite.and_then(|opposite| opposite.join().unwrap().into());
            let reset = Some(io::ErrorKind::ConnectionReset);
            assert!(read == reset || written == reset, "round {round}: {read:?} {written:?}");
        });
        let end = pump.await.unwrap().end;
        let expected = if of_client { PumpEnd::ClientReset } else { PumpEnd::ServerReset };
        assert_eq!(end, expected, "round {round}");
    }
}

/// The client's stream is blocked on a server that does not read, when one of them resets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_is_noticed_while_the_other_side_does_not_read() {
    for splice in [true, false] {
        for of_client in [true, false] {
            let Pumped { client, server, pump } = Pumped::start(limits(splice));
            assert!(fill(&client) > 0);
            let (gone, stays) = if of_client { (client, server) } else { (server, client) };
            reset(gone);
            // The pump ends although nothing is read.
            let end = tokio::time::timeout(DEADLINE, pump).await.unwrap().unwrap().end;
            assert_eq!(end, if of_client { PumpEnd::ClientReset } else { PumpEnd::ServerReset });
            assert_reset(read_to_end(&stays).1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_of_an_idle_or_half_closed_connection_arrives_as_a_reset() {
    for (half_closed, of_client) in [(false, true), (false, false), (true, true), (true, false)] {
        let Pumped { client, server, pump } = Pumped::start(limits(true));
        let (gone, stays) = if of_client { (client, server) } else { (server, client) };
        if half_closed {
            stays.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_end(&gone).0, 0);
        }
        reset(gone);
        assert_reset(read_to_end(&stays).1);
        pump.await.unwrap();
    }
}

/// A side that has sent everything and its end, and then resets because of what the other side sends late:
/// what it sent arrives with its end. Then the other side is reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_ended_before_a_reset_arrives_whole_with_its_end() {
    for splice in [true, false] {
        let Pumped { client, server, pump } = Pumped::start(limits(splice));
        // Few enough for the first window, so that FIN is on its way before the socket is closed.
        let length = 40_000;
        (&client).write_all(&vec![1; length]).unwrap();
        // The socket is closed, so its kernel answers later bytes with a reset.
        drop(client);
        (&server).write_all(b"late").unwrap();
        thread::sleep(Duration::from_millis(50));
        let (received, end) = read_to_end(&server);
        assert_eq!(
            (received, end.map_err(|error| error.kind())),
            (length as u64, Ok(())),
            "splice: {splice}"
        );
        assert_eq!(pump.await.unwrap().end, PumpEnd::ResetAfterEnd);
        // The reset follows the end.
        let error = (&server).write_all(b"more").and_then(|()| {
            thread::sleep(Duration::from_millis(50));
            (&server).write_all(b"more")
        });
        assert!(error.is_err());
    }
}

/// splice(2) to a reset socket may return a number of bytes and drop the error. Afterwards the socket reads
/// as if the peer had ended its stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_that_another_call_has_consumed_is_not_taken_for_an_end() {
    use super::super::ends::{StreamEnd, stream_end};
    let (peer, socket) = pair();
    reset(peer);
    thread::sleep(Duration::from_millis(50));
    assert!(socket.take_error().unwrap().is_some(), "the error is consumed");
    assert_eq!((&socket).read(&mut [0; 8]).unwrap(), 0, "the kernel reports an end");
    assert_eq!(stream_end(&socket, false), StreamEnd::Reset);

    let (peer, socket) = pair();
    drop(peer);
    assert_eq!((&socket).read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(stream_end(&socket, false), StreamEnd::Orderly);
    (&socket).write_all(b"late").unwrap();
    thread::sleep(Duration::from_millis(50));
    assert_eq!(stream_end(&socket, false), StreamEnd::OrderlyThenReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_pump_resets_both_sides() {
    for splice in [true, false] {
        let Pumped { client, server, pump } = Pumped::start(limits(splice));
        (&client).write_all(&[1; 10_000]).unwrap();
        (&server).read_exact(&mut [0; 10_000]).unwrap();
        fill(&client);
        pump.abort();
        assert!(pump.await.unwrap_err().is_cancelled());
        assert_reset(read_to_end(&server).1);
        assert_reset(read_to_end(&client).1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_connection_is_reset_and_a_slow_one_is_not() {
    let limit = Duration::from_millis(400);
    let limits = PumpLimits { stall: Some(limit), ..limits(true) };
    let begin = Instant::now();
    let Pumped { client, server, pump } = Pumped::start(limits);
    assert_eq!(pump.await.unwrap().end, PumpEnd::Stalled);
    assert!(begin.elapsed() >= limit);
    assert_reset(read_to_end(&client).1);
    assert_reset(read_to_end(&server).1);

    // Bytes in one direction keep the connection, and the limit counts from the last of them.
    let Pumped { client, server, pump } = Pumped::start(limits);
    let begin = Instant::now();
    while begin.elapsed() < 3 * limit {
        (&server).write_all(b"byte").unwrap();
        (&client).read_exact(&mut [0; 4]).unwrap();
        thread::sleep(limit / 10);
    }
    assert!(!pump.is_finished());
    assert_eq!(pump.await.unwrap().end, PumpEnd::Stalled);
    // A peer that does not read at all has stalled, although bytes wait for it.
    let Pumped { client, server: _server, pump } = Pumped::start(limits);
    client.set_nonblocking(true).unwrap();
    while (&client).write(&[0; 65_536]).is_ok() {}
    assert_eq!(pump.await.unwrap().end, PumpEnd::Stalled);
}

/// The address to which nothing answers is not needed: the sockets of a pump are closed with the process.
/// Here they are closed by the runtime's end, which drops all tasks.
#[test]
fn the_end_of_the_runtime_resets_both_sides() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let Pumped { client, server, pump: _pump } = {
        let _inside = runtime.enter();
        Pumped::start(limits(true))
    };
    (&client).write_all(b"some").unwrap();
    (&server).read_exact(&mut [0; 4]).unwrap();
    runtime.shutdown_timeout(DEADLINE);
    assert_reset(read_to_end(&server).1);
    assert_reset(read_to_end(&client).1);
}
