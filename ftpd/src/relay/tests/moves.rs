//! Every byte arrives, in both directions, however the sides read and write.

use super::*;

const LENGTH: usize = 64 * 1024 * 1024;

fn send_and_end(mut socket: &TcpStream, bytes: &[u8]) {
    socket.write_all(bytes).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
}

fn receive(mut socket: &TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    socket.read_to_end(&mut received).unwrap();
    received
}

async fn both_ways(splice: bool) {
    let Pumped { client, server, pump } = Pumped::start(limits(splice));
    let (up, down) = (content(1, LENGTH), content(2, LENGTH));
    thread::scope(|scope| {
        scope.spawn(|| send_and_end(&client, &up));
        scope.spawn(|| send_and_end(&server, &down));
        let at_server = scope.spawn(|| receive(&server));
        let at_client = scope.spawn(|| receive(&client));
        assert!(at_server.join().unwrap() == up, "the upload differs");
        assert!(at_client.join().unwrap() == down, "the download differs");
    });
    let result = pump.await.unwrap();
    assert_eq!((result.to_server, result.to_client), (LENGTH as u64, LENGTH as u64));
    assert_eq!(result.end, super::super::PumpEnd::Orderly);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_byte_arrives_in_both_directions_at_once_through_pipes() {
    both_ways(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_byte_arrives_in_both_directions_at_once_by_copying() {
    both_ways(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_of_any_length_with_pauses_arrive_unchanged() {
    for splice in [true, false] {
        let Pumped { client, server, pump } = Pumped::start(limits(splice));
        let bytes = content(3, 4 * 1024 * 1024);
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut rest, mut step) = (&bytes[..], 1);
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(step.min(rest.len()));
                    (&client).write_all(now).unwrap();
                    rest = later;
                    step = step * 7 % 90_001;
                    if step % 5 == 0 {
                        thread::sleep(Duration::from_micros(200));
                    }
                }
                client.shutdown(Shutdown::Write).unwrap();
            });
            // A slow reader: the pump blocks on a full socket again and again.
            let mut received = Vec::new();
            let mut block = vec![0; 40_000];
            loop {
                let read = (&server).read(&mut block).unwrap();
                if read == 0 {
                    break;
                }
                received.extend_from_slice(&block[..read]);
                thread::sleep(Duration::from_micros(100));
            }
            assert!(received == bytes, "splice: {splice}");
        });
        drop(server);
        drop(client);
        pump.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn urgent_data_is_an_ordinary_byte_of_the_stream() {
    for splice in [true, false] {
        let Pumped { client, server, pump } = Pumped::start(limits(splice));
        // Many bytes first, which wait for the server: so a pipe is in use when the urgent byte comes.
        let many = vec![7; 20_000_000];
        let sent = [&many[..], b"\xff\xf4\xff\xf2ABOR\r\n"].concat();
        let received = thread::scope(|scope| {
            let received = scope.spawn(|| {
                thread::sleep(Duration::from_millis(200));
                receive(&server)
            });
            (&client).write_all(&many).unwrap();
            (&client).write_all(b"\xff\xf4").unwrap();
            SockRef::from(&client).send_out_of_band(b"\xff\xf2").unwrap();
            (&client).write_all(b"ABOR\r\n").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            received.join().unwrap()
        });
        assert!(received == sent, "splice: {splice}, {} of {} bytes", received.len(), sent.len());
        drop(server);
        assert_eq!(receive(&client), b"");
        assert_eq!(pump.await.unwrap().end, super::super::PumpEnd::Orderly);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_are_counted_also_when_the_connection_is_cut() {
    let limits = PumpLimits { to_server: count, ..limits(true) };
    let Pumped { client, server, pump } = Pumped::start(limits);
    (&client).write_all(&[1; 100_000]).unwrap();
    (&server).read_exact(&mut [0; 100_000]).unwrap();
    pump.abort();
    assert!(pump.await.unwrap_err().is_cancelled());
    assert_eq!(MOVED.load(Ordering::Relaxed), 100_000);
}
