# The service as an image: docker build --tag oncepay .

FROM rust:1-bookworm AS build
WORKDIR /build

# Builds the dependencies in a layer of their own, with an empty program in place of ours. They take minutes and change
# seldom, so Docker rebuilds this layer only when Cargo.toml or Cargo.lock changes. The last two commands remove the empty
# program, since Cargo compares file times and might take it for ours.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src tests \
    && touch src/lib.rs \
    && echo 'fn main() {}' | tee src/main.rs >tests/main.rs \
    && cargo build --locked --release \
    && cargo clean --locked --release --package oncepay \
    && rm -r src tests

COPY migrations migrations
COPY ops/runbook.md ops/runbook.md
COPY src src
RUN mkdir tests \
    && touch tests/main.rs \
    && cargo build --locked --release

# libpq and OpenSSL are linked in statically, so the program needs no further package.
FROM debian:bookworm-slim
COPY --from=build /build/target/release/oncepay /usr/local/bin/
# An unprivileged user without a name, and the only folder that it may write to.
RUN install --directory --owner=10001 --group=10001 /var/lib/oncepay
USER 10001:10001
WORKDIR /var/lib/oncepay
ENV ONCEPAY_LISTEN=0.0.0.0:8080 ONCEPAY_DATA_DIR=/var/lib/oncepay
# Asks whether the process lives. A database that is down, for instance, is no reason to restart the service.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["oncepay", "health"]
EXPOSE 8080
ENTRYPOINT ["oncepay"]
CMD ["serve"]
