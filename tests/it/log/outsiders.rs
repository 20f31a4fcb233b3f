//! What strangers learn from the public log of a busy day: neither users, nor kinds of steps, nor pairs.
//!
//! The test knows the truth from the database, and asks whether a stranger's statistic sees it. Each statistic is tried on a model
//! without the defence, too, and has to see it there.

use std::collections::{BTreeMap, HashMap, HashSet};

use diesel::{QueryableByName, RunQueryDsl, sql_types};
use jiff::SignedDuration;
use keypool_server::config::Limits;
use keypool_transparency::leaf::Leaf;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use rstest::rstest;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::checks::entries;
use crate::support::{Database, Device, Http, Raw, TestServer, hot_client};

const OWNERS: usize = 200;
const ADDERS: usize = 20;
const BUSY_MINUTES: usize = 8;
const STEPS_A_MINUTE: usize = 150;

/// What happens in a quiet minute: one step, or the two of a late spend.
const QUIET: [&str; 5] = ["reserve", "spend", "release", "revoke", "late spend"];

/// A step as the database knows it.
#[derive(Clone, Debug)]
struct Truth {
    owner: i64,
    kind: String,
    reservation: Vec<u8>,
}

/// What was appended in one minute, in the order of the tree. Filling has no truth.
#[derive(Clone, Debug, Default)]
struct Batch {
    leaves: Vec<(Leaf, Option<Truth>)>,
    /// The step of a quiet minute.
    quiet: Option<&'static str>,
}

#[derive(QueryableByName)]
struct Row {
    #[diesel(sql_type = sql_types::BigInt)]
    id: i64,
    #[diesel(sql_type = sql_types::BigInt)]
    device_id: i64,
    #[diesel(sql_type = sql_types::Text)]
    action: String,
    #[diesel(sql_type = sql_types::Nullable<sql_types::Binary>)]
    reservation: Option<Vec<u8>>,
    #[diesel(sql_type = sql_types::Nullable<sql_types::Binary>)]
    positions: Option<Vec<u8>>,
}

const ROWS: &str = "SELECT e.id, e.device_id, e.action, e.reservation, p.positions FROM audit_events e \
                    JOIN log_positions p ON p.chunk = e.id / 256 WHERE e.step IS NOT NULL ORDER BY e.id";

/// The steps by their places in the tree, and the places in the order of the steps.
fn truth(server: &TestServer) -> (HashMap<usize, Truth>, Vec<usize>) {
    let rows: Vec<Row> = match &mut server.database() {
        Raw::Postgres(conn) => diesel::sql_query(ROWS).load(conn).unwrap(),
        Raw::Sqlite(conn) => diesel::sql_query(ROWS).load(conn).unwrap(),
    };
    let (mut truth, mut order) = (HashMap::new(), Vec::new());
    for Row { id, device_id, action, reservation, positions } in rows {
        let from = usize::try_from(id % 256).unwrap() * 16;
        let slots = &positions.unwrap()[from..from + 16];
        let places: Vec<_> = slots.chunks(8).filter(|slot| slot.iter().any(|byte| *byte != 0)).collect();
        for (number, slot) in places.iter().enumerate() {
            let place = u64::from_be_bytes((*slot).try_into().unwrap()) & ((1 << 48) - 1);
            // A late spend begins, too.
            let kind = if number + 1 < places.len() { "reserve".to_owned() } else { action.clone() };
            let reservation = reservation.clone().unwrap_or_default();
            truth.insert(usize::try_from(place).unwrap(), Truth { owner: device_id, kind, reservation });
            order.push(usize::try_from(place).unwrap());
        }
    }
    (truth, order)
}

struct Day {
    server: TestServer,
    owners: Vec<Http>,
    adders: Vec<Http>,
    random: StdRng,
    /// Reservations, each with its adder.
    held: Vec<(usize, Value)>,
    /// The size of the log after each minute, and what the minute was for.
    minutes: Vec<(usize, Option<&'static str>)>,
}

impl Day {
    async fn begin(db: Database) -> Self {
        let server = TestServer::start_with(db, |config| config.limits = Limits::Off).await;
        let anyone = Http::over(hot_client(), &server.base);
        let (mut owners, mut adders) = (Vec::new(), Vec::new());
        // One more for each quiet minute.
        for number in 0..OWNERS + BUSY_MINUTES * QUIET.len() {
            let user = format!("owner-{number}");
            let owner = anyone.registered(&user, "laptop").await;
            let device = Device::new(&user, "laptop");
            owner.uploaded(&[device.key_package(), device.key_package(), device.last_resort()]).await;
            owners.push(owner);
        }
        for number in 0..ADDERS {
            adders.push(anyone.registered(&format!("adder-{number}"), "phone").await);
        }
        server.sequence().await;
        Self { server, owners, adders, random: StdRng::seed_from_u64(9420), held: Vec::new(), minutes: Vec::new() }
    }

    async fn reserve(&mut self, owner: usize) {
        let adder = self.random.random_range(0..ADDERS);
        let answer = self.adders[adder].reserve(&format!("owner-{owner}")).await;
        if answer.status == 200 {
            self.held.push((adder, answer.ok()["reservations"][0].clone()));
        }
    }

    async fn end(&mut self, spends: bool) {
        let Some((adder, reservation)) = self.held.pop() else { return };
        let adder = &self.adders[adder];
        // A lapsed one may be refused.
        let _ = if spends { adder.spend(&reservation, "friends").await } else { adder.release(&reservation).await };
    }

    /// Users act in a row, as they do: somebody adds a few devices, and commits.
    async fn busy_minute(&mut self) {
        self.stop_sequencer();
        self.server.advance(SignedDuration::from_mins(1));
        self.server.sweep().await;
        let mut steps = 0;
        while steps < STEPS_A_MINUTE {
            let owner = self.random.random_range(0..OWNERS);
            let (count, dice) = (self.random.random_range(1..4), self.random.random_range(0..10));
            for _ in 0..count {
                self.reserve(owner).await;
            }
            match dice {
                0 => {}
                1 => self.revoke(owner).await,
                _ => {
                    for _ in 0..count {
                        self.end(dice > 3).await;
                    }
                }
            }
            steps += 2 * count;
        }
        self.end_minute(None).await;
    }

    /// One step, or the two of a late spend.
    async fn quiet_minute(&mut self, step: &'static str, owner: usize) {
        self.stop_sequencer();
        self.held.clear();
        if step != "reserve" {
            self.reserve(owner).await;
        }
        self.server.advance(SignedDuration::from_mins(if step == "late spend" { 2 } else { 0 }));
        self.server.sweep().await;
        self.end_minute(None).await;
        self.stop_sequencer();
        match step {
            "reserve" => self.reserve(owner).await,
            "revoke" => self.revoke(owner).await,
            "release" => self.end(false).await,
            _ => self.end(true).await,
        }
        self.end_minute(Some(step)).await;
    }

    async fn revoke(&self, owner: usize) {
        self.owners[owner].post("/keypackages/revoke", &json!({"all": true})).await.ok();
    }

    /// All that happens until the end of the minute comes in one batch.
    fn stop_sequencer(&self) {
        self.server.database().run("ALTER TABLE log_tiles RENAME TO stopped_tiles");
    }

    async fn end_minute(&mut self, quiet: Option<&'static str>) {
        self.server.database().run("ALTER TABLE stopped_tiles RENAME TO log_tiles");
        self.server.sequence().await;
        self.minutes.push((entries(&self.server).await.len(), quiet));
    }

    /// What strangers read, with the truth that they lack; and the same batches in the order in which the steps happened.
    async fn read(&self) -> (Vec<Batch>, Vec<Batch>) {
        let entries = entries(&self.server).await;
        let (truth, order) = truth(&self.server);
        let leaf = |place: usize| (Leaf::from_bytes(&entries[place]).unwrap(), truth.get(&place).cloned());
        // The first entry is the log's name.
        let (mut shown, mut plain, mut from) = (Vec::new(), Vec::new(), 1);
        for (to, quiet) in &self.minutes {
            let places = from..*to;
            shown.push(Batch { leaves: places.clone().map(leaf).collect(), quiet: *quiet });
            let steps = order.iter().copied().filter(|place| places.contains(place));
            let filling = places.clone().filter(|place| !truth.contains_key(place));
            plain.push(Batch { leaves: steps.chain(filling).map(leaf).collect(), quiet: *quiet });
            from = *to;
        }
        assert_eq!(from, entries.len());
        (shown, plain)
    }
}

/// How many standard deviations the number of neighbours with one label is from that of a random order.
fn neighbours<L: PartialEq>(batches: &[Batch], label: impl Fn(Option<&Truth>) -> Option<L>) -> f64 {
    let labels: Vec<Vec<_>> =
        batches.iter().map(|batch| batch.leaves.iter().map(|(_, truth)| label(truth.as_ref())).collect()).collect();
    let count = |labels: &[Vec<Option<L>>]| -> f64 {
        let equal = |pair: &&[Option<L>]| pair[0].is_some() && pair[0] == pair[1];
        let all = labels.iter().map(|labels| labels.windows(2).filter(equal).count()).sum::<usize>();
        f64::from(u32::try_from(all).unwrap())
    };
    let seen = count(&labels);
    let (mut random, mut shuffled) = (StdRng::seed_from_u64(1), labels);
    let mut draw = || {
        for labels in &mut shuffled {
            labels.shuffle(&mut random);
        }
        count(&shuffled)
    };
    let draws: Vec<_> = (0..400).map(|_| draw()).collect();
    let mean = draws.iter().sum::<f64>() / 400.0;
    let variance = draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / 400.0;
    (seen - mean) / variance.sqrt().max(0.1)
}

/// Chi-square of the bytes of two sets of leaves, less its mean, in standard deviations: it has 255 degrees of freedom if both are random.
fn difference<'a>(one: impl Iterator<Item = &'a [u8]>, other: impl Iterator<Item = &'a [u8]>) -> f64 {
    let histogram = |leaves: &mut dyn Iterator<Item = &'a [u8]>| {
        let mut counts = [0.0; 256];
        leaves.flatten().for_each(|byte| counts[usize::from(*byte)] += 1.0);
        counts
    };
    let (one, other) = (histogram(&mut { one }), histogram(&mut { other }));
    let (sum, others): (f64, f64) = (one.iter().sum(), other.iter().sum());
    let (up, down) = ((others / sum).sqrt(), (sum / others).sqrt());
    let parts = one.iter().zip(&other).map(|(a, b): (&f64, &f64)| (a * up - b * down).powi(2) / (a + b).max(1.0));
    (parts.sum::<f64>() - 255.0) / 510_f64.sqrt()
}

/// How many eight-byte words occur twice.
fn repeated<'a>(leaves: impl Iterator<Item = &'a [u8]>) -> usize {
    let mut seen = HashSet::new();
    leaves.flat_map(|leaf| leaf.as_chunks::<8>().0).filter(|word| !seen.insert(**word)).count()
}

/// The tag and the commitment.
fn bytes(leaf: &Leaf) -> &[u8] {
    &leaf.as_bytes()[1..]
}

#[rstest]
#[tokio::test]
async fn strangers_tell_neither_users_nor_kinds_nor_pairs(
    #[values(Database::Postgres, Database::Sqlite)] db: Database,
) {
    let mut day = Day::begin(db).await;
    for minute in 0..BUSY_MINUTES {
        day.busy_minute().await;
        for (number, step) in QUIET.iter().enumerate() {
            // Owners whose KeyPackages nobody has reserved yet.
            day.quiet_minute(step, OWNERS + minute * QUIET.len() + number).await;
        }
    }
    let (shown, plain) = day.read().await;
    let steps: Vec<_> = shown
        .iter()
        .flat_map(|batch| &batch.leaves)
        .filter_map(|(leaf, truth)| truth.as_ref().map(|truth| (leaf, truth)))
        .collect();
    let kinds: BTreeMap<&str, usize> = steps.iter().fold(BTreeMap::new(), |mut kinds, (_, truth)| {
        *kinds.entry(truth.kind.as_str()).or_default() += 1;
        kinds
    });
    assert!(kinds.len() == 5 && kinds.values().all(|count| *count > 10), "{kinds:?}");

    // In a batch, the place of a leaf says nothing.
    let users = |truth: Option<&Truth>| truth.map(|truth| truth.owner);
    let kind = |truth: Option<&Truth>| truth.map(|truth| truth.kind.clone());
    let pair = |truth: Option<&Truth>| truth.map(|truth| truth.reservation.clone()).filter(|id| !id.is_empty());
    let filling = |truth: Option<&Truth>| Some(truth.is_none());
    for (what, shown, plain) in [
        ("users", neighbours(&shown, users), neighbours(&plain, users)),
        ("kinds", neighbours(&shown, kind), neighbours(&plain, kind)),
        ("pairs", neighbours(&shown, pair), neighbours(&plain, pair)),
        ("filling", neighbours(&shown, filling), neighbours(&plain, filling)),
    ] {
        println!("{db:?}: {what}: {shown:.1} standard deviations, {plain:.1} without shuffling");
        assert!(shown.abs() < 5.0, "neighbours show {what}: {shown}");
        assert!(plain.abs() > 8.0, "the statistic does not see {what} where nothing is shuffled: {plain}");
    }

    // The size of a batch says how many steps there were to the next multiple of 16, and in a quiet minute nothing of their kind.
    let quiet = |batches: &[Batch], size: fn(&Batch) -> usize| -> BTreeMap<&str, HashSet<usize>> {
        let mut sizes: BTreeMap<_, HashSet<_>> = BTreeMap::new();
        for batch in batches {
            if let Some(step) = batch.quiet {
                sizes.entry(step).or_default().insert(size(batch));
            }
        }
        sizes
    };
    let filled = quiet(&shown, |batch| batch.leaves.len());
    assert_eq!(filled.len(), QUIET.len());
    assert!(filled.values().all(|sizes| *sizes == HashSet::from([16])), "the size shows the kind: {filled:?}");
    let unfilled = quiet(&shown, |batch| batch.leaves.iter().filter(|(_, truth)| truth.is_some()).count());
    assert!(unfilled["late spend"].is_disjoint(&unfilled["spend"]), "without filling, it does: {unfilled:?}");

    // Bytes say nothing: none repeat, and those of one kind, or of filling, are spread like all others.
    let all = || shown.iter().flat_map(|batch| &batch.leaves).map(|(leaf, _)| bytes(leaf));
    assert_eq!(repeated(all()), 0);
    for unsalted in [|truth: &Truth| truth.owner.to_string(), |truth: &Truth| truth.kind.clone()] {
        let model: Vec<_> = steps.iter().map(|(_, truth)| Sha256::digest(unsalted(truth)).to_vec()).collect();
        assert!(repeated(model.iter().map(Vec::as_slice)) > 100, "unsalted commitments repeat");
    }
    let of_kind =
        |is: bool| steps.iter().filter(move |(_, truth)| (truth.kind == "reserve") == is).map(|(leaf, _)| bytes(leaf));
    let fill = || {
        shown.iter().flat_map(|batch| &batch.leaves).filter(|(_, truth)| truth.is_none()).map(|(leaf, _)| bytes(leaf))
    };
    let real = || steps.iter().map(|(leaf, _)| bytes(leaf));
    let shown = [difference(of_kind(true), of_kind(false)), difference(real(), fill())];
    println!("{db:?}: bytes of kinds and of filling differ by {shown:.1?} standard deviations");
    assert!(shown.iter().all(|difference| difference.abs() < 6.0), "{shown:?}");
    // A tag that begins with the kind, and filling from a generator of seven bits.
    let marked: Vec<_> = of_kind(true).map(|leaf| [&[1], &leaf[1..]].concat()).collect();
    let weak: Vec<Vec<u8>> = fill().map(|leaf| leaf.iter().map(|byte| byte & 0x7f).collect()).collect();
    for difference in [
        difference(marked.iter().map(Vec::as_slice), of_kind(false)),
        difference(real(), weak.iter().map(Vec::as_slice)),
    ] {
        assert!(difference > 12.0, "the statistic does not see a mark: {difference}");
    }
}
