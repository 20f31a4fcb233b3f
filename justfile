# What people do here. `just` is a convenience: each recipe is one command, which docs/development.md lists, too.

# List the recipes
default:
    @just --list --unsorted

# Run the server on http://127.0.0.1:8080, with SQLite in ./keypool.db
run *ARGS:
    cargo run --bin keypool-server -- {{ARGS}}

# Run every test, or those whose name has NAME in it
test *NAME:
    cargo test-all {{NAME}}

# Check the format, the lints and the documentation
lint:
    .ci/run format lint doc

# Build the images that docker-compose.yml names
image:
    .ci/run image

# Run the tests that run against containers, after `just image`
containers:
    .ci/run containers

# Fuzz what the server reads from strangers
fuzz SECONDS="60":
    fuzz/run {{SECONDS}}

# Measure: `just bench --help` lists what
bench *ARGS:
    cargo run --release --package keypool-bench -- {{ARGS}}

# Run everything that has to hold before a change lands
ci:
    .ci/run
