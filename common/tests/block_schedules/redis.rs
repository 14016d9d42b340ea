//! The registry's scripts in an embedded Lua, against a Redis in memory.

use common::{
    keys::Keys,
    node::NodeName,
    passive::PassiveLayout,
    registry::{BlockHolder, BlockReply, BlockStepRequest},
};
use mlua::{Function, Lua, Table};

const STEP: &str = include_str!("../../src/registry/lua/block_step.lua");

/// First part of all keys.
const PREFIX: &str = "ftp";

/// Redis, with a clock that the caller sets.
pub(crate) struct SimulatedRedis {
    _lua: Lua,
    publish: Function,
    leave: Function,
    run: Function,
    take: Function,
    clear: Function,
    keys: Keys,
}

/// The arguments of a process that describe itself.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) name: NodeName,
    pub(crate) incarnation: u64,
    pub(crate) place: String,
}

/// An answer of `publish_node.lua`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PublishAnswer {
    Joined(BlockReply),
    /// Another process holds the name.
    NameTaken,
    NameFree,
}

impl SimulatedRedis {
    pub(crate) fn new() -> Self {
        Self::with_step(STEP)
    }

    /// A Redis with another text of `block_step.lua`, in which `rule` is replaced.
    pub(crate) fn without(rule: &str, replacement: &str) -> Self {
        assert_eq!(STEP.matches(rule).count(), 1, "{rule}");
        Self::with_step(&STEP.replace(rule, replacement))
    }

    fn with_step(step: &str) -> Self {
        const PUBLISH: &str = include_str!("../../src/registry/lua/publish_node.lua");
        const LEAVE: &str = include_str!("../../src/registry/lua/leave_node.lua");
        let lua = Lua::new();
        let function = |name: &str, text: &str| lua.load(text).set_name(name).into_function().unwrap();
        lua.load(include_str!("redis.lua")).set_name("redis.lua").exec().unwrap();
        let simulation: Table = lua.globals().get("simulation").unwrap();
        Self {
            publish: function("publish_node.lua", &format!("{step}{PUBLISH}")),
            leave: function("leave_node.lua", LEAVE),
            run: simulation.get("run").unwrap(),
            take: simulation.get("take").unwrap(),
            clear: simulation.get("clear").unwrap(),
            keys: Keys::new(PREFIX),
            _lua: lua,
        }
    }

    /// Loses all data.
    pub(crate) fn clear(&self) {
        self.clear.call::<()>(()).unwrap();
    }

    /// Runs `publish_node.lua` at `now` (ms), as `Cluster::publish` does.
    pub(crate) fn publish(
        &self,
        now: u64,
        identity: &Identity,
        step: &str,
        (layout, lease, is_draining): (PassiveLayout, u64, bool),
        (holder, request): (&BlockHolder, &BlockStepRequest),
    ) -> PublishAnswer {
        let (keys, name) = (&self.keys, &identity.name);
        let keys = [
            keys.nodes(),
            keys.node(name),
            keys.node_commands(name),
            keys.node_sessions(name),
            keys.revision(),
            keys.node_orders(name),
            keys.blocks(),
        ];
        let mut argv = vec![
            name.to_string(),
            identity.incarnation.to_string(),
            identity.place.clone(),
            step.to_owned(),
            layout.range().from().to_string(),
            layout.range().to().to_string(),
            "{}".to_owned(),
            lease.to_string(),
            (lease * 120).to_string(),
            u8::from(is_draining).to_string(),
            layout.block_ports().to_string(),
        ];
        argv.extend(request.arguments(holder));
        let answer: Vec<String> = self.run.call((&self.publish, now, keys.to_vec(), argv)).unwrap();
        match answer[0].as_str() {
            "joined" => PublishAnswer::Joined(BlockReply::parse(&answer[4]).expect("a valid answer")),
            "named" => PublishAnswer::NameTaken,
            "free" => PublishAnswer::NameFree,
            other => panic!("unexpected answer: {other}"),
        }
    }

    /// Runs `leave_node.lua`.
    pub(crate) fn leave(&self, now: u64, identity: &Identity) {
        let (keys, name) = (&self.keys, &identity.name);
        let keys = [
            keys.nodes(),
            keys.node(name),
            keys.node_sessions(name),
            keys.node_commands(name),
            keys.node_orders(name),
            keys.blocks(),
        ];
        let argv = [name.to_string(), identity.incarnation.to_string(), "60".to_owned()];
        self.run.call::<()>((&self.leave, now, keys.to_vec(), argv.to_vec())).unwrap();
    }

    /// Takes the commands to a node. Returns true if there were some.
    pub(crate) fn take_commands(&self, now: u64, name: &NodeName) -> bool {
        self.take.call::<u64>((now, self.keys.node_commands(name))).unwrap() > 0
    }
}
