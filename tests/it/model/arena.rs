//! A server for any number of histories, and how one is played.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use jiff::SignedDuration;
use keypool_openapi::DeviceOf;
use keypool_server::config::{Limits, OnLapse};
use keypool_validation::key_package::CredentialBinding;
use tokio::runtime::Runtime;

use super::{
    reference::{Model, Rules, Who},
    step::{DEVICES, Step},
    world::World,
};
use crate::support::{Database, Http, TestServer, hot_client};

/// All on one page, or on several.
const LONG_PAGE: usize = 1_000;
const SHORT_PAGE: usize = 4;

/// A server for any number of histories, each with users of its own.
pub struct Arena {
    pub(super) runtime: Runtime,
    pub(super) server: TestServer,
    pub(super) anyone: Http,
    pub(super) rules: Rules,
    histories: AtomicUsize,
}

impl Arena {
    pub fn start(db: Database, on_lapse: OnLapse) -> Self {
        let rules = Rules { retire: on_lapse == OnLapse::Retire, capacity: 4, target: 4, low: 2, min_remaining: 300 };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let server = runtime.block_on(TestServer::start_with(db, |config| {
            config.on_lapse = on_lapse;
            config.limits = Limits::Off;
            // Anybody may upload anything: also another's packages.
            config.credential_binding = CredentialBinding::Off;
            (config.pool_capacity, config.pool_target, config.low_watermark) = (4, 4, 2);
            // Shorter than a reservation may be: one can outlive its package.
            config.min_remaining = Duration::from_mins(5);
            // Time runs on for decades.
            config.max_lifetime *= 1_000;
            config.audit_retention *= 1_000;
            // In several batches.
            config.sweep_batch = 2;
        }));
        // OpenMLS judges by the system's time, which runs on by itself: from here it lags behind for good.
        server.advance(SignedDuration::from_hours(24));
        let anyone = Http::over(hot_client(), &server.base);
        Self { runtime, server, anyone, rules, histories: AtomicUsize::new(0) }
    }

    /// Plays a history: after every step, the status of each pool is compared, and all that is to be seen of those that
    /// the step may change; in the end, all of all.
    pub fn play(&self, steps: &[Step], mut before_each: impl FnMut()) {
        let mut world = self.enter();
        for step in steps {
            before_each();
            let mut changed = world.may_change(step);
            world.take(step);
            changed.retain(|who| world.model.registered[*who]);
            world.compare(&changed, LONG_PAGE);
        }
        let all: Vec<_> = world.there().collect();
        world.compare(&all, SHORT_PAGE);
    }

    /// All that was handed out is in the log, once.
    pub fn has_a_whole_log(&self) {
        self.runtime.block_on(crate::log::is_whole(&self.server));
    }

    /// Devices that nobody has heard of before, and their model.
    fn enter(&self) -> World<'_> {
        let history = self.histories.fetch_add(1, Ordering::Relaxed);
        let name = |who: Who| DeviceOf {
            user: format!("{}-{history}", ["alice", "bob"][who / 2]).parse().unwrap(),
            device: ["laptop", "phone"][who % 2].parse().unwrap(),
        };
        let names: Vec<_> = (0..DEVICES).map(name).collect();
        let model = Model::new(self.rules, names.clone(), self.server.now().as_second());
        let mut world = World {
            arena: self,
            model,
            callers: Vec::new(),
            names,
            made: Vec::new(),
            bytes: BTreeMap::new(),
            reservations: Vec::new(),
            kept: BTreeMap::new(),
        };
        for who in 0..DEVICES {
            world.callers.push(self.anyone.clone());
            world.register(who);
        }
        world
    }
}
