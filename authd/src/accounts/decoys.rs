//! Decoy hashes for users who do not exist. The duration of a response must not reveal whether a user
//! exists.
//!
//! Users may have hashes of different costs, for example imported ones or those from before a change of
//! `argon2_*`. So an unknown name gets the cost of some hash that is in use. A keyed hash of the name
//! selects it: the same name always takes the same time, on every authd with the same node token.

use std::sync::RwLock;

use common::{
    password::Phc,
    secret::Secret,
    sync::{read, write},
};
use sha2::{Digest, Sha256};

/// Maximum number of different costs. A cluster normally has one or two.
const MAX_COSTS: usize = 16;

/// One decoy hash for each cost in use.
pub(super) struct Decoys {
    key: [u8; 32],
    decoys: RwLock<Vec<Phc>>,
}

impl Decoys {
    /// `known` is a secret of the cluster. All authd instances that know it choose the same costs;
    /// without it, the choice is random for each process. `first` is a hash with the cost of new hashes.
    pub(super) fn new(known: Option<&Secret>, first: &Phc) -> Self {
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
    pub(super) fn observe(&self, hash: &Phc) {
        let is_known = |decoys: &[Phc]| decoys.iter().any(|decoy| decoy.has_cost_of(hash));
        if is_known(&read(&self.decoys)) {
            return;
        }
        let mut decoys = write(&self.decoys);
        if decoys.len() < MAX_COSTS && !is_known(&decoys) {
            decoys.push(hash.decoy());
        }
    }

    /// The hash against which the password of the unknown user `name` is verified. No known password matches
    /// it.
    ///
    /// Rendezvous hashing: the cost with the highest keyed hash of name and cost wins. So a new cost changes
    /// the choice for as few names as possible.
    ///
    /// # Panics
    /// Never: `new` adds a decoy, and decoys are never removed.
    pub(super) fn of(&self, name: &str) -> Phc {
        let rank = |decoy: &&Phc| -> [u8; 32] {
            let mut digest = Sha256::new();
            digest.update(self.key);
            digest.update(decoy.cost());
            // Separates the parts: a cost contains no zero byte.
            digest.update(b"\0");
            digest.update(name);
            digest.finalize().into()
        };
        let decoys = read(&self.decoys);
        decoys.iter().max_by_key(rank).expect("`new` adds a decoy").clone()
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
    fn unknown_names_are_spread_over_the_costs_in_use_and_a_name_keeps_its_cost() {
        let token = Secret::new("token");
        let (usual, rare) = (hash(64), hash(128));
        let decoys = Decoys::new(Some(&token), &usual);
        let names: Vec<String> = (0..1000).map(|number| format!("user{number}")).collect();
        assert!(names.iter().all(|name| decoys.of(name).has_cost_of(&usual)));
        decoys.observe(&rare);
        decoys.observe(&rare);
        let rare_ones = names.iter().filter(|name| decoys.of(name).has_cost_of(&rare)).count();
        assert!((350..650).contains(&rare_ones), "{rare_ones} of 1000");
        // Another authd of the cluster, which learned the costs in the other order.
        let other = Decoys::new(Some(&token), &rare);
        other.observe(&usual);
        assert!(names.iter().all(|name| other.of(name).has_cost_of(&decoys.of(name))));
        // A third cost takes names from both and moves no name between them.
        let before: HashMap<_, _> = names.iter().map(|name| (name, decoys.of(name))).collect();
        let third = hash(256);
        decoys.observe(&third);
        for name in &names {
            let now = decoys.of(name);
            assert!(now.has_cost_of(&third) || now.has_cost_of(&before[name]), "{name}");
        }
    }

    #[test]
    fn decoy_has_the_cost_of_its_hash_and_matches_no_password() {
        let right = hash(64);
        let decoy = right.decoy();
        assert!(right.matches(b"x") && !decoy.matches(b"x"));
        assert!(decoy.has_cost_of(&right) && !decoy.has_cost_of(&hash(128)));
        assert_eq!(decoy.as_str().parse(), Ok(decoy.clone()), "a decoy is a valid hash");
    }

    #[test]
    fn number_of_costs_is_bounded() {
        let decoys = Decoys::new(None, &hash(64));
        for memory in 65..100 {
            decoys.observe(&hash(memory));
        }
        assert_eq!(decoys.decoys.read().unwrap().len(), MAX_COSTS);
    }
}
