//! Hashes that stand in for users who do not exist: the time of an answer must not tell whether a name is a
//! user's.
//!
//! Users may have hashes of different costs: imported ones, and those from before `argon2_*` changed. So an
//! unknown name gets the cost of some hash that is in use. Which one follows from the name by a keyed hash: the
//! same name always takes the same time, on every authd with the same node token.

use std::sync::RwLock;

use common::{
    password::Phc,
    secret::Secret,
    sync::{read, write},
};
use sha2::{Digest, Sha256};

/// Most costs that are kept. A cluster has one or two.
const MOST: usize = 16;

/// One stand-in for each cost in use.
pub struct Decoys {
    key: [u8; 32],
    decoys: RwLock<Vec<Phc>>,
}

impl Decoys {
    /// `known` to all authds of a cluster makes them choose alike; without it the choice is this process's own.
    /// `first` is a hash with the cost of new hashes.
    pub fn new(known: Option<&Secret>, first: &Phc) -> Self {
        let key = match known {
            Some(secret) => {
                let mut digest = Sha256::new();
                digest.update("authd: costs of unknown users\0");
                digest.update(secret.expose());
                digest.finalize().into()
            }
            None => rand::random(),
        };
        let decoys = Self { key, decoys: RwLock::default() };
        decoys.observe(first);
        decoys
    }

    /// Notes the cost of a hash that is in use.
    pub fn observe(&self, hash: &Phc) {
        let is_known = |decoys: &[Phc]| decoys.iter().any(|decoy| decoy.has_cost_of(hash));
        if is_known(&read(&self.decoys)) {
            return;
        }
        let mut decoys = write(&self.decoys);
        if decoys.len() < MOST && !is_known(&decoys) {
            decoys.push(hash.decoy());
        }
    }

    /// The hash to verify a password against when there is no user `name`. No password is known to match it.
    ///
    /// A cost that is new changes the choice for as few names as possible: the highest keyed hash of name and
    /// cost wins.
    ///
    /// # Panics
    /// Never: there is one decoy from the beginning, and none is removed.
    pub fn of(&self, name: &str) -> Phc {
        let rank = |decoy: &&Phc| -> [u8; 32] {
            let mut digest = Sha256::new();
            digest.update(self.key);
            digest.update(decoy.cost());
            // No cost has a zero byte.
            digest.update(b"\0");
            digest.update(name);
            digest.finalize().into()
        };
        let decoys = read(&self.decoys);
        decoys.iter().max_by_key(rank).expect("new() adds one").clone()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use argon2::Params;

    use super::*;

    fn hash(memory: u32) -> Phc {
        Phc::compute(&Params::new(memory, 1, 1, None).unwrap(), b"x")
    }

    #[test]
    fn unknown_names_are_spread_over_the_costs_in_use_and_each_keeps_its_own() {
        let token = Secret::new("token");
        let (usual, rare) = (hash(64), hash(128));
        let decoys = Decoys::new(Some(&token), &usual);
        let names: Vec<String> = (0..1000).map(|number| format!("user{number}")).collect();
        assert!(names.iter().all(|name| decoys.of(name).has_cost_of(&usual)));
        decoys.observe(&rare);
        decoys.observe(&rare);
        let rare_ones = names.iter().filter(|name| decoys.of(name).has_cost_of(&rare)).count();
        assert!((350..650).contains(&rare_ones), "{rare_ones} of 1000");
        // Another authd of the cluster, which saw them the other way round.
        let other = Decoys::new(Some(&token), &rare);
        other.observe(&usual);
        assert!(names.iter().all(|name| other.of(name).has_cost_of(&decoys.of(name))));
        // A third cost takes names from both, and moves none between them.
        let before: HashMap<_, _> = names.iter().map(|name| (name, decoys.of(name))).collect();
        let third = hash(256);
        decoys.observe(&third);
        for name in &names {
            let now = decoys.of(name);
            assert!(now.has_cost_of(&third) || now.has_cost_of(&before[name]), "{name}");
        }
    }

    #[test]
    fn a_decoy_costs_as_much_as_its_hash_and_no_password_matches_it() {
        let right = hash(64);
        let decoy = right.decoy();
        assert!(right.matches(b"x") && !decoy.matches(b"x"));
        assert!(decoy.has_cost_of(&right) && !decoy.has_cost_of(&hash(128)));
        assert_eq!(decoy.as_str().parse(), Ok(decoy.clone()), "it is a hash as any other");
    }

    #[test]
    fn no_more_costs_are_kept_than_the_limit() {
        let decoys = Decoys::new(None, &hash(64));
        for memory in 65..100 {
            decoys.observe(&hash(memory));
        }
        assert_eq!(decoys.decoys.read().unwrap().len(), MOST);
    }
}
