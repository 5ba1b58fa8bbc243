#!/bin/sh
# The container's health check, for Docker, Swarm and people: docker exec CONTAINER healthcheck.sh [ports]
#
# Of a node, six checks of this task alone: app running, NGINX running, NGINX answering HTTP, NGINX configuration
# valid, API ready, database reachable (both notes once the node was ready: it serves without). Of `ports`: its
# holder answers. A line each; exit code 1 when one failed.
case "${1:-node}" in
node) check=node/healthcheck.py ;;
ports) check=ports/healthcheck.py ;;
*)
    echo "usage: healthcheck.sh [node | ports]" >&2
    exit 1
    ;;
esac
# -I -S: neither the caller's environment nor site-packages, which these files do without: most of the time is start-up.
# It takes a tenth of a second, and gives silent sockets 1.4 s. The rest is for a machine whose CPU is busy elsewhere.
timeout -k 1 8 python3 -I -S /opt/lyttle-ops/lib/python3*/site-packages/lyttle_ops/"$check"
code=$?
case "$code" in
0 | 1) ;; # it spoke for itself
124) echo "FAILED  the check itself did not end within 8 s: this machine's CPU is busy elsewhere" ;;
137) echo "FAILED  the check itself was killed: out of memory, or it did not end when told after 8 s" ;;
*) echo "FAILED  the check itself could not be run (code $code)" ;;
esac
exit "$code"
