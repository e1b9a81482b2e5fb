# The image of the operator and the command line, for amd64 and arm64:
#
#   docker buildx build --platform linux/amd64,linux/arm64 --tag REGISTRY/docker-image-pusher:VERSION --push .
#
# `make image` builds the same without a container engine, for the machine's own architecture; it reads the last stage of
# this file, so that stage has one instruction per line and no file that hack/image-root.sh does not put there.

# Always the builder's own architecture: the compiler makes programs for the other one faster than an emulator runs it.
FROM --platform=$BUILDPLATFORM rust:1.95.0-bookworm AS build
ARG TARGETARCH
# Of the two compilers one is there: the builder's own, under the same kind of name.
RUN case "$(dpkg --print-architecture)" in \
      amd64) other="gcc-aarch64-linux-gnu libc6-dev-arm64-cross" ;; \
      *) other="gcc-x86-64-linux-gnu libc6-dev-amd64-cross" ;; \
    esac \
 && apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates $other \
 && rm -rf /var/lib/apt/lists/*
ENV CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc \
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc \
    CC_x86_64_unknown_linux_gnu=x86_64-linux-gnu-gcc
WORKDIR /project
COPY . .
# .cargo/config.toml links statically.
RUN case "$TARGETARCH" in \
      amd64) target=x86_64-unknown-linux-gnu ;; \
      arm64) target=aarch64-unknown-linux-gnu ;; \
      *) echo "there is no image for $TARGETARCH" >&2; exit 1 ;; \
    esac \
 && rustup target add "$target" \
 && cargo build --locked --release --bin docker-image-pusher --target "$target" \
 && hack/image-root.sh /root-of-the-image "target/$target/release/docker-image-pusher"

FROM scratch
LABEL org.opencontainers.image.title="docker-image-pusher"
LABEL org.opencontainers.image.description="Moves container images between registries, verified byte for byte"
LABEL org.opencontainers.image.version="0.1.0"
LABEL org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /root-of-the-image/ /
USER 65534:65534
ENTRYPOINT ["/docker-image-pusher"]
