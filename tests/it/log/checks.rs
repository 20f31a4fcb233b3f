//! What the tests of the log share: adders and owners that check, and the log as an auditor reads it.

use std::{collections::HashSet, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use diesel::{QueryableByName, RunQueryDsl, sql_types};
use keypool_openapi::ReservationId;
use keypool_transparency::{
    adder::{self, EarlierHandOut, HandOut, Spend},
    answers::Answers,
    key_package::KeyPackageFields,
    leaf::Leaf,
    package::{self, Bind, PackageId},
    policy::Policy,
    receipt::Receipt,
    tile::{FULL, TileId, TileKind, exact_bundle},
    verdict::Verdict,
};
use serde_json::{Value, json};

use crate::support::{Http, Place, Raw, TestServer, group};

/// What an adder keeps of a reservation.
pub struct Handed {
    pub caller: Http,
    pub reservation: Value,
    pub hand_out: HandOut,
    pub fields: KeyPackageFields,
}

pub fn bytes(text: &Value) -> Vec<u8> {
    STANDARD.decode(text.as_str().unwrap()).unwrap()
}

fn id(reservation: &Value) -> package::ReservationId {
    let id: ReservationId = reservation["reservation_id"].as_str().unwrap().parse().unwrap();
    package::ReservationId::new(id.owner, *id.nonce.as_bytes())
}

/// Reserves a KeyPackage for a group, with random bytes and a receipt.
pub async fn reserve(caller: &Http, (user, device): (&str, &str), owner: &str, for_group: &str) -> Handed {
    let bind: [u8; 32] = rand::random();
    let body = json!({
        "target_user": owner, "group_id": group(for_group), "bind": STANDARD.encode(bind), "proof": "receipt",
    });
    let answer = caller.post("/keypackages/reserve", &body).await.ok();
    let reservation = answer["reservations"][0].clone();
    let until: jiff::Timestamp = reservation["expires_at"].as_str().unwrap().parse().unwrap();
    let hand_out = HandOut {
        n: reservation["handout"].as_u64().map(|n| n.try_into().unwrap()),
        owner: format!("{}/{}", reservation["user"].as_str().unwrap(), reservation["device"].as_str().unwrap()),
        actor: format!("{user}/{device}"),
        group_id: for_group.as_bytes().to_vec(),
        spent_for: Vec::new(),
        reservation_id: id(&reservation),
        bind: Bind(bind),
        until: Some(until.as_second().try_into().unwrap()),
        spend: Spend::Not,
        receipts: vec![reservation["receipt"].as_str().unwrap().to_owned()],
    };
    let fields = KeyPackageFields::parse(&bytes(&reservation["keypackage"])).unwrap();
    Handed { caller: caller.clone(), reservation, hand_out, fields }
}

impl Handed {
    pub fn package(&self) -> PackageId {
        PackageId::of(&self.fields)
    }

    /// Spends it for the same group, with a receipt.
    pub async fn spend(&mut self) -> Value {
        let body = json!({
            "reservation_id": self.reservation["reservation_id"], "group_id": STANDARD.encode(&self.hand_out.group_id),
            "bind": STANDARD.encode(self.hand_out.bind.0), "proof": "receipt",
        });
        let spent = self.caller.post("/keypackages/spend", &body).await.ok();
        let n = spent["handout"].as_u64().map(|n| u32::try_from(n).unwrap());
        if n != self.hand_out.n {
            // A late spend is one more hand-out.
            (self.hand_out.n, self.hand_out.until) = (n, None);
        }
        self.hand_out.spend = Spend::Acknowledged;
        self.hand_out.receipts.extend(spent["receipt"].as_str().map(str::to_owned));
        spent
    }

    pub async fn release(&self) {
        self.caller.release(&self.reservation).await.ok();
    }

    /// The adder's own check, with what the server proves now.
    pub async fn verdict(&self) -> Verdict {
        let answers = proofs(&self.caller, json!([{"reservation_id": self.reservation["reservation_id"]}])).await;
        self.verdict_of(&answers, &[], &policy(&self.caller).await)
    }

    pub fn verdict_of(&self, answers: &Answers, earlier: &[EarlierHandOut], policy: &Policy) -> Verdict {
        let checked = answers.check(&policy.log_keys()).unwrap();
        adder::check(&self.hand_out, &self.fields, earlier, &checked, policy)
    }
}

/// The server's answers about steps.
pub async fn proofs(caller: &Http, of: Value) -> Answers {
    let answer = caller.post("/log/proofs", &json!({"of": of, "receipt": true})).await.ok();
    serde_json::from_value(answer).unwrap()
}

/// A policy that believes the server's logs, from the oldest key on.
pub async fn policy(caller: &Http) -> Policy {
    let log = caller.get("/log").await.ok();
    let before = log["before"].as_array().unwrap();
    let mut logs: Vec<_> = before.iter().rev().chain([&log["origin"]]).collect();
    let first = logs.remove(0)["key"].as_str().unwrap().parse().unwrap();
    let mut policy = Policy::of_logs([first]);
    for log in logs {
        policy.follow(&log["key_note"].as_str().unwrap().parse().unwrap()).unwrap();
    }
    policy
}

/// The entries of the newest log, as an auditor reads them. Asserts that the tree of them is the signed one.
pub async fn entries(server: &TestServer) -> Vec<Vec<u8>> {
    let anyone = server.anyone();
    let policy = policy(&anyone).await;
    let path = anyone.get("/log").await.ok()["origin"]["path"].as_str().unwrap().to_owned();
    let note = anyone.get(&format!("/{path}/checkpoint")).await.text.parse().unwrap();
    let checkpoint = policy.log_keys().checkpoint(&note).unwrap();
    let mut entries = Vec::new();
    for index in 0..checkpoint.size.div_ceil(FULL) {
        let tile = TileId::in_tree(TileKind::Entries, index, checkpoint.size).unwrap();
        let bundle = anyone.bytes(&format!("/{path}/{tile}")).await;
        entries.extend(exact_bundle(&bundle, tile.width).unwrap().into_iter().map(<[u8]>::to_vec));
    }
    let hashes: Vec<_> = entries.iter().map(|entry| keypool_transparency::merkle::leaf_hash(entry)).collect();
    assert_eq!(keypool_transparency::merkle::root(&hashes), checkpoint.root);
    entries
}

/// The leaves among the entries. Asserts that no tag repeats.
pub async fn leaves(server: &TestServer) -> HashSet<Leaf> {
    let entries = entries(server).await;
    let leaves: HashSet<_> = entries.iter().filter_map(|entry| Leaf::from_bytes(entry).ok()).collect();
    let tags: HashSet<_> = leaves.iter().map(Leaf::tag).collect();
    assert_eq!(tags.len(), entries.iter().filter(|entry| entry[0] == 1).count(), "a tag repeats");
    leaves
}

#[derive(QueryableByName)]
struct Logged {
    #[diesel(sql_type = sql_types::BigInt)]
    id: i64,
    #[diesel(sql_type = sql_types::Integer)]
    step: i32,
    #[diesel(sql_type = sql_types::Nullable<sql_types::Binary>)]
    positions: Option<Vec<u8>>,
}

const LOGGED: &str = "SELECT e.id, e.step, p.positions FROM audit_events e \
                      LEFT JOIN log_positions p ON p.chunk = e.id / 256 WHERE e.step IS NOT NULL ORDER BY e.id";

/// Asserts that the log has each step of the trail once, and nothing else but filling. Returns how many steps there are.
pub async fn is_whole(server: &TestServer) -> usize {
    server.sequence().await;
    let events: Vec<Logged> = match &mut server.database() {
        Raw::Postgres(conn) => diesel::sql_query(LOGGED).load(conn).unwrap(),
        Raw::Sqlite(conn) => diesel::sql_query(LOGGED).load(conn).unwrap(),
    };
    let (mut places, mut steps) = (HashSet::new(), 0);
    for Logged { id, step, positions } in events {
        let expected = if step & 3 == 3 { 2 } else { 1 };
        let from = usize::try_from(id % 256).unwrap() * 16;
        let slots = &positions.unwrap_or_default();
        let slots = slots.get(from..from + 16).unwrap_or_default();
        let own: Vec<_> = slots.chunks(8).filter(|slot| slot.iter().any(|byte| *byte != 0)).collect();
        assert_eq!(own.len(), expected, "event {id} with the step {step} has other leaves");
        steps += expected;
        places.extend(own.into_iter().map(<[u8]>::to_vec));
    }
    assert_eq!(places.len(), steps, "two steps have one leaf");
    assert!(leaves(server).await.len() >= steps);
    steps
}

/// The same of a database whose servers are gone.
pub async fn is_whole_at(place: Arc<Place>) -> usize {
    is_whole(&TestServer::start_at(place, |_| {}).await).await
}

/// A receipt that the log's key has signed.
pub fn receipt(policy: &Policy, signed: &str) -> Receipt {
    policy.log_keys().receipt(signed).unwrap()
}
