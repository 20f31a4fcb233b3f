//! The support of the tests: databases, servers, HTTP, and devices that make KeyPackages.

pub mod built;
mod clock;
pub mod compose;
mod database;
mod device;
mod foreigner;
mod http;
mod insider;
mod memory;
mod owner;
mod party;
mod postgres;
mod prometheus;
mod proxy;
mod repository;
mod server;
pub mod tools;

pub use built::{binary, cargo, command, example, target};
pub use clock::OtherClock;
pub use database::{Anywhere, Database, Place, Raw, Where, migrations};
pub use device::{Device, decode, encode, tampered, with_the_keys_of};
pub use foreigner::Foreigner;
pub use http::{Answer, Http, builder, group, hot_client};
pub use insider::Insider;
pub use keypool_tests::{as_from_a_shell, without_settings};
pub use memory::data_directory;
pub use owner::{Owner, copy, new_device};
pub use party::Party;
pub use postgres::{GUARDED, Postgres, output, program};
pub use prometheus::{Prometheus, changed_alerts, promtool};
pub use proxy::{Fault, Proxy};
pub use repository::{repository, texts};
pub use server::{ADMIN_TOKEN, PATIENCE, Running, ServerProcess, TestServer, free_port, now};
