//! The task that receives a node's commands from Redis.

use std::{sync::Arc, time::Duration};

use redis::{RedisResult, cmd};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{cluster::Cluster, core::Core, events::ClusterEvent, view::parse, work::RegistryWork};
use crate::node::NodeCommand;

/// Time for which Redis holds a request for commands before it answers that no command has come.
const COMMAND_WAIT: Duration = Duration::from_secs(5);

/// Receives commands on a connection of its own, until the receiver of the events is dropped.
pub(super) async fn listen(core: Arc<Core>, cluster: Arc<Cluster>, events: mpsc::Sender<ClusterEvent>) {
    const FIRST_PAUSE: Duration = Duration::from_millis(100);
    const LONGEST_PAUSE: Duration = Duration::from_secs(2);
    let mut pause = FIRST_PAUSE;
    loop {
        // After a failover the commands come from another server.
        let server = cluster.link().connections();
        if let Ok(mut connection) = cluster.link().dedicated().await {
            while let Ok(command) = next_command(&cluster, &mut connection).await {
                if command.is_none() && cluster.link().connections() != server {
                    break;
                }
                pause = FIRST_PAUSE;
                let Some(command) = command else { continue };
                let key = cluster.commands_key();
                let Some(command) = parse(&command, &key) else {
                    continue;
                };
                if command == NodeCommand::Refresh {
                    core.work(|_| RegistryWork::Refresh);
                    continue;
                }
                core.orders().note(&command);
                if events.send(ClusterEvent::Command(command)).await.is_err() {
                    return;
                }
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Waits for one command and returns its text; `None` if none came within [`COMMAND_WAIT`].
async fn next_command(
    cluster: &Cluster,
    connection: &mut redis::aio::MultiplexedConnection,
) -> RedisResult<Option<Vec<u8>>> {
    let key = cluster.commands_key();
    let request = cmd("BRPOP").arg(&key).arg(COMMAND_WAIT.as_secs()).to_owned();
    // Redis answers after `COMMAND_WAIT` at the latest. A connection that is silent for twice as long is
    // dead.
    let answer = request.query_async::<Option<(Vec<u8>, Vec<u8>)>>(connection);
    match timeout(COMMAND_WAIT * 2, answer).await {
        Ok(Ok(answer)) => Ok(answer.map(|(_key, command)| command)),
        Ok(Err(error)) => {
            if error.code() == Some("WRONGTYPE") {
                log::warn!(key = key.as_str(); "removed a value in Redis that is not a list of commands");
                cmd("DEL").arg(&key).exec_async(connection).await?;
            }
            Err(error)
        }
        Err(elapsed) => Err(std::io::Error::from(elapsed).into()),
    }
}
