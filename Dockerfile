# One image for `lyttle-ops node` and `lyttle-ops ports`.
#
#   make image                                     or, by hand (DOCKER_BUILDKIT=1 with Docker before 23):
#   docker build --tag lyttle-ops:0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" .
#
# With a package index or a CA of your own, name them as secrets, which stay out of the image:
#   --secret id=pip_conf,src=/etc/pip.conf --secret id=ca_bundle,src=/etc/ssl/certs/ca-certificates.crt
# and with Debian mirrors of your own, a base that knows them: --build-arg BASE=registry.example/debian:trixie-slim
ARG BASE=debian:trixie-slim

FROM ${BASE} AS builder
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/build \
    && python3 -m venv --without-pip /opt/lyttle-ops

# pyproject.toml changes often, what it depends on seldom: the layers below follow the list alone.
FROM builder AS requirements
COPY pyproject.toml /
RUN python3 -c 'import tomllib; project = tomllib.load(open("/pyproject.toml", "rb")); \
open("/build.txt", "w").write("\n".join(project["build-system"]["requires"])); \
open("/run.txt", "w").write("\n".join(project["project"]["dependencies"]))'

FROM builder AS dependencies
COPY --from=requirements /build.txt /run.txt /
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=ca_bundle \
    if [ -s /run/secrets/ca_bundle ]; then export PIP_CERT=/run/secrets/ca_bundle; fi \
    && /opt/build/bin/pip install --no-cache-dir --requirement /build.txt \
    && /opt/build/bin/pip --python /opt/lyttle-ops/bin/python install --no-cache-dir --requirement /run.txt

FROM dependencies AS wheel
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY lyttle_ops lyttle_ops
COPY webapi webapi
# Into a root of its own, so that the final image gets our files as one small layer above the dependencies.
RUN /opt/build/bin/python -m hatchling build --target wheel --directory /wheel \
    && /opt/build/bin/pip --python /opt/lyttle-ops/bin/python install \
        --no-cache-dir --no-index --no-deps --no-warn-script-location --root /layer /wheel/*.whl

FROM ${BASE}
# Swarm cannot set no-new-privileges (moby 25209), so the image holds no program that could gain any.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates nginx python3 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/log/* /var/www /etc/nginx/sites-enabled/* \
    && groupadd --gid 7443 lyttle \
    && useradd --uid 7443 --gid 7443 --no-create-home --home-dir /app/state --shell /usr/sbin/nologin lyttle \
    && install --directory --owner=lyttle --group=lyttle --mode=0750 /app/state /run/lyttle-ports \
    # A tmpfs of Swarm's is root's and takes this mode over.
    && install --directory --mode=1777 /run/lyttle-ops \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
COPY --from=dependencies /opt/lyttle-ops /opt/lyttle-ops
COPY --from=wheel /layer /
COPY --chmod=0755 healthcheck.sh /usr/local/bin/healthcheck.sh

ENV PATH=/opt/lyttle-ops/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1
USER lyttle
WORKDIR /app/state
EXPOSE 80 443 3003
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=20s --start-period=60s --retries=6 CMD ["healthcheck.sh"]
ENTRYPOINT ["tini", "--"]
CMD ["lyttle-ops", "node"]

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="LyttleOps" \
      org.opencontainers.image.description="HTTPS on every node of a Docker Swarm" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
