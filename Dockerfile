# keypool-server, with keypool and keypool-verify beside it: three programs, the C library, OpenSSL, certificates, nothing else.

FROM rust:1-slim-bookworm AS build
# For PostgreSQL over TLS and for encrypted client files: Debian's OpenSSL, whose mends come with the next build.
RUN apt-get update \
 && apt-get install -y --no-install-recommends libssl-dev pkg-config \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /keypool
ENV CARGO_PROFILE_RELEASE_STRIP=symbols CARGO_TARGET_DIR=/target OPENSSL_NO_VENDOR=1

# The dependencies, in a layer of their own: it is built again when a manifest changes, not when the code does. Each program
# is built by itself, else the server would get the client's SQLCipher in place of SQLite.
COPY Cargo.toml Cargo.lock ./
COPY bench/Cargo.toml bench/
COPY cli/Cargo.toml cli/
COPY client/Cargo.toml client/
COPY examples/mls-rs/Cargo.toml examples/mls-rs/
COPY openapi/Cargo.toml openapi/
COPY server/Cargo.toml server/
COPY tests/Cargo.toml tests/
COPY transparency/Cargo.toml transparency/
COPY validation/Cargo.toml validation/
COPY verify/Cargo.toml verify/
COPY workspace-hack workspace-hack
RUN mkdir -p bench/src bench/benches cli/src client/src client/examples examples/mls-rs/src openapi/src server/src tests/src tests/it transparency/src transparency/tests/it validation/src verify/src verify/tests/it \
 && touch bench/benches/key_package.rs bench/benches/local_store.rs bench/src/lib.rs \
      client/src/lib.rs examples/mls-rs/src/lib.rs openapi/src/lib.rs server/src/lib.rs tests/src/lib.rs tests/it/main.rs validation/src/lib.rs \
      transparency/src/lib.rs transparency/tests/it/main.rs verify/tests/it/main.rs \
 && for member in bench cli examples/mls-rs server tests verify; do echo 'fn main() {}' >$member/src/main.rs; done \
 && for example in join pool_only shared; do echo 'fn main() {}' >client/examples/$example.rs; done \
 && cargo build --locked --release --package keypool-server \
 && cargo build --locked --release --package keypool-cli \
 && cargo build --locked --release --package keypool-verify \
 && cargo clean --release --package keypool-server --package keypool-cli --package keypool-client \
      --package keypool-openapi --package keypool-transparency --package keypool-validation --package keypool-verify

COPY migrations migrations
COPY openapi openapi
COPY transparency transparency
COPY validation validation
COPY server server
RUN cargo build --locked --release --package keypool-server
COPY verify verify
RUN cargo build --locked --release --package keypool-verify
COPY client client
COPY cli cli
RUN cargo build --locked --release --package keypool-cli

FROM debian:bookworm-slim AS root
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libssl3 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /target/release/keypool-server /target/release/keypool /target/release/keypool-verify /root/usr/local/bin/
# What the programs link to, where the loader looks for it.
RUN ldd /root/usr/local/bin/* | grep -o '/lib[^ ]*' | sort -u \
  | while read -r library; do cp --dereference --parents "$library" /root; done \
 && cp --parents /etc/ssl/certs/ca-certificates.crt /root \
 && echo 'hosts: files dns' >/root/etc/nsswitch.conf \
 && echo 'keypool:x:10001:10001::/data:/nonexistent' >/root/etc/passwd \
 && echo 'keypool:x:10001:' >/root/etc/group \
 && install --directory --mode 1777 /root/tmp \
 && install --directory --owner 10001 --group 10001 --mode 0700 /root/data
COPY LICENSE-APACHE LICENSE-MIT LICENSES-THIRD-PARTY.txt /root/usr/share/doc/keypool/

FROM scratch
LABEL org.opencontainers.image.title="Keypool" \
      org.opencontainers.image.description="The KeyPackage directory of an MLS (RFC 9420) messenger" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=root /root/ /
# Memory that is not needed goes back to the system: what large messages took would else be kept in pieces.
ENV MALLOC_ARENA_MAX=2 \
    MALLOC_MMAP_THRESHOLD_=131072 \
    MALLOC_TRIM_THRESHOLD_=131072
ENV PATH=/usr/local/bin \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    KEYPOOL_LISTEN=0.0.0.0:8080 \
    KEYPOOL_DATABASE_URL=sqlite:///data/keypool.db
USER 10001:10001
WORKDIR /data
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=90s CMD ["keypool-server", "healthcheck"]
CMD ["keypool-server"]
