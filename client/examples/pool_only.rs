//! Keeps a pool full with its own OpenMLS provider, its own store and its own HTTP:
//! `cargo run --example pool_only -- http://localhost:8080`. A messenger has its database in place of the map.

#![expect(clippy::print_stdout, reason = "an example says what it does")]

use std::{collections::BTreeMap, env, error::Error, sync::Arc};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use keypool_client::{
    ApiClient, CIPHERSUITE, KeyPackageMetadata, KeyPackagePool, KeyPackagePoolConfig, KeyPackageSigner, PoolHistory,
    PoolIdentity, PoolStore, Refresh, RefreshReport, Result, Sending, Transport, TransportError,
    http::{Request, Response},
    wire::{Base64Bytes, DeviceOf, KeyPackageRef, RegisterRequest, ReserveRequest, SpendRequest},
};
use openmls::prelude::{BasicCredential, Ciphersuite, CredentialWithKey};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::{MemoryStorageError, OpenMlsRustCrypto};
use openmls_traits::OpenMlsProvider as _;
use parking_lot::Mutex;

/// The rows and the keys of the pool, in memory.
#[derive(Default)]
pub(crate) struct MemoryStore {
    openmls: OpenMlsRustCrypto,
    rows: Mutex<BTreeMap<KeyPackageRef, KeyPackageMetadata>>,
    history: Mutex<PoolHistory>,
}

impl PoolStore for MemoryStore {
    type Error = MemoryStorageError;
    type Provider<'a> = &'a OpenMlsRustCrypto;

    fn provider(&self) -> &OpenMlsRustCrypto {
        &self.openmls
    }

    /// Here, one refresh at a time is the only user. What fails is undone.
    fn transaction<T>(&self, write: impl FnOnce() -> Result<T>) -> Result<T> {
        let keys = || self.openmls.storage().values.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = (self.rows.lock().clone(), *self.history.lock(), keys().clone());
        write().inspect_err(|_| (*self.rows.lock(), *self.history.lock(), *keys()) = before)
    }

    fn metadata(&self) -> Result<Vec<KeyPackageMetadata>> {
        Ok(self.rows.lock().values().cloned().collect())
    }

    fn find_metadata(&self, keypackage_ref: &KeyPackageRef) -> Result<Option<KeyPackageMetadata>> {
        Ok(self.rows.lock().get(keypackage_ref).cloned())
    }

    fn create_pool_metadata(&self, row: &KeyPackageMetadata) -> Result<()> {
        self.rows.lock().insert(row.keypackage_ref.clone(), row.clone());
        Ok(())
    }

    fn update_pool_metadata(&self, row: &KeyPackageMetadata) -> Result<()> {
        self.rows.lock().entry(row.keypackage_ref.clone()).and_modify(|old| *old = row.clone());
        Ok(())
    }

    fn delete_pool_metadata(&self, keypackage_ref: &KeyPackageRef) -> Result<()> {
        self.rows.lock().remove(keypackage_ref);
        Ok(())
    }

    fn history(&self) -> Result<PoolHistory> {
        Ok(*self.history.lock())
    }

    fn set_history(&self, history: &PoolHistory) -> Result<()> {
        *self.history.lock() = *history;
        Ok(())
    }
}

/// A registered device with its pool, and the key that signs for it.
pub(crate) struct Device {
    name: DeviceOf,
    signer: Arc<SignatureKeyPair>,
    pub(crate) store: MemoryStore,
    pub(crate) api: ApiClient,
}

impl PoolIdentity for Device {
    fn device(&self) -> DeviceOf {
        self.name.clone()
    }

    fn ciphersuites(&self) -> Vec<Ciphersuite> {
        vec![CIPHERSUITE]
    }

    fn key_package_signer(&self, ciphersuite: Ciphersuite) -> Result<KeyPackageSigner> {
        let credential = BasicCredential::new(self.name.to_string().into_bytes()).into();
        let credential = CredentialWithKey { credential, signature_key: self.signer.to_public_vec().into() };
        Ok(KeyPackageSigner { ciphersuite, credential, signer: self.signer.clone() })
    }
}

struct PlainHttp(Client<HttpConnector, Full<Bytes>>);

impl Transport for PlainHttp {
    fn send(&self, request: Request<Vec<u8>>, limit: usize) -> Sending<'_> {
        let answer = self.0.request(request.map(Full::from));
        Box::pin(async move {
            let (head, body) = answer.await.map_err(|error| TransportError::Connect(error.into()))?.into_parts();
            let body = Limited::new(body, limit).collect().await.map_err(TransportError::Other)?;
            Ok(Response::from_parts(head, body.to_bytes().into()))
        })
    }
}

impl Device {
    pub(crate) async fn register(server: &str, name: DeviceOf) -> Result<Self, Box<dyn Error>> {
        let http = PlainHttp(Client::builder(TokioExecutor::new()).build_http());
        let api = ApiClient::with_transport(server, None, Arc::new(http))?;
        let request = RegisterRequest { user: name.user.clone(), device: name.device.clone() };
        api.set_token(Some(api.register(&request, None).await?.token.into()));
        let signer = Arc::new(SignatureKeyPair::new(CIPHERSUITE.signature_algorithm())?);
        Ok(Self { name, signer, store: MemoryStore::default(), api })
    }

    pub(crate) async fn refresh(&self) -> Result<RefreshReport> {
        let pool = KeyPackagePool::new(&self.store, &KeyPackagePoolConfig::DEFAULT);
        Refresh::new(pool, self, &self.api).run(false, &|_| {}).await
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let server = env::args().nth(1).ok_or("give the address of a server")?;
    let alice = Device::register(&server, "alice/laptop".parse()?).await?;
    let bob = Device::register(&server, "bob/phone".parse()?).await?;
    println!("{} uploaded", alice.refresh().await?.uploaded);
    for _ in 0..25 {
        let request = ReserveRequest::of(alice.name.user.clone());
        let reservation_id = bob.api.reserve_key_package(&request).await?.reservations.remove(0).reservation_id;
        bob.api.spend_key_package(&SpendRequest::new(reservation_id, Base64Bytes(b"friends".to_vec()))).await?;
    }
    let report = alice.refresh().await?;
    println!("{} uploaded again, {} spent, {} fresh", report.uploaded, report.pool.spent, report.pool.fresh);
    Ok(())
}
