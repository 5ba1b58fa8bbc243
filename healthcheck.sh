#!/bin/sh
# The container's health check, for Docker, Swarm and people: docker exec CONTAINER healthcheck.sh
# Six checks of this task alone: app running, NGINX running, NGINX answering HTTP, NGINX configuration valid,
# API ready, database reachable (a note once the node was ready: it serves without). Exit code 1 when one failed.
#
# -I -S: neither the caller's environment nor site-packages; both checks are files that need the standard library only.
exec timeout -k 0.2 1.9 python3 -I -S /opt/lyttle-ops/lib/python3*/site-packages/lyttle_ops/node/healthcheck.py
