# The gateway as an image: built from this tree, run by a user without rights. It must not know any configuration;
# that comes in as a volume.
#
#   docker build -t fusegate .
#   docker run --rm -p 8000:8000 -v "$PWD/config:/etc/fusegate:ro" fusegate
#
# The default address is 127.0.0.1:8000, which nobody outside of the container reaches: config/config.yaml needs
#
#   gateway:
#     listen: 0.0.0.0:8000

FROM rust:1-slim-bookworm AS build
WORKDIR /build
COPY . .
RUN cargo build --release --locked --bin fusegate

# The same Debian as above: the binary is linked against its C library.
FROM debian:12-slim
COPY --from=build /build/target/release/fusegate /usr/local/bin/fusegate
# A number, so that a platform that demands a user other than root can see that it is one.
USER 10001:10001
VOLUME /etc/fusegate
EXPOSE 8000
# Drains: what is in flight is finished first.
STOPSIGNAL SIGTERM
ENTRYPOINT ["fusegate"]
CMD ["-c", "/etc/fusegate/config.yaml"]
