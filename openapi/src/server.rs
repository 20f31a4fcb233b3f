use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a client has to know of a server before it uploads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerInfo {
    /// The name of the program.
    #[schema(example = "keypool-server")]
    pub name: String,
    /// Its version.
    #[schema(example = "0.1.0")]
    pub version: String,
    /// The ciphersuites that the server accepts (RFC 9420, section 17.1).
    #[schema(example = json!([1, 2, 3]))]
    pub ciphersuites: Vec<u16>,
    /// What the first device of a user needs: `open`: nothing; `token`: an enrolment token; `jwt`: a token of the
    /// identity provider.
    #[schema(example = "open")]
    pub registration: String,
    /// Which credentials the server accepts: `strict`: basic ones with the identity `user/device` of the owner, and one
    /// signature key for each ciphersuite; `off`: any.
    #[schema(example = "strict")]
    pub credential_binding: String,
    /// The limits.
    pub limits: ServerLimits,
    /// Where the documentation is, as paths relative to this one.
    pub documentation: Documentation,
}

/// The limits of a server. Times are in seconds, sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerLimits {
    /// The longest lifetime of a KeyPackage, from `not_before` to `not_after`.
    #[schema(example = 7_776_000)]
    pub max_lifetime: u64,
    /// KeyPackages that expire sooner are not handed out, and not accepted.
    #[schema(example = 3_600)]
    pub min_remaining: u64,
    /// How far `not_before` may be ahead of the server's clock.
    #[schema(example = 60)]
    pub clock_tolerance: u64,
    /// The most KeyPackages in one upload.
    #[schema(example = 100)]
    pub upload_batch: usize,
    /// The largest KeyPackage.
    #[schema(example = 65_536)]
    pub key_package_size: usize,
    /// The most KeyPackages of one ciphersuite that a device's pool holds.
    #[schema(example = 1_000)]
    pub pool_capacity: u32,
    /// Fresh KeyPackages of one ciphersuite in a full pool.
    #[schema(example = 32)]
    pub pool_target: u32,
    /// Fresh KeyPackages of one ciphersuite below which a pool is low.
    #[schema(example = 8)]
    pub low_watermark: u32,
    /// The most devices that a user may have.
    #[schema(example = 100)]
    pub devices: u32,
    /// The most users in one `reserve`.
    #[schema(example = 100)]
    pub targets: usize,
    /// How long a reservation holds if the request has no `ttl`.
    #[schema(example = 60)]
    pub reservation_ttl: u64,
    /// The longest `ttl`.
    #[schema(example = 600)]
    pub max_reservation_ttl: u64,
    /// The most recipients of a Commit or a message.
    #[schema(example = 1_000)]
    pub recipients: usize,
    /// The largest Commit, Welcome or message.
    #[schema(example = 1_048_576)]
    pub message_size: usize,
    /// How long a message waits for a device that does not fetch it.
    #[schema(example = 2_592_000)]
    pub message_retention: u64,
}

/// Where the documentation of a server is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Documentation {
    /// The OpenAPI document.
    #[schema(example = "openapi.json")]
    pub openapi: String,
    /// Swagger UI, for people.
    #[schema(example = "swagger-ui/")]
    pub swagger_ui: String,
}
