#!/usr/bin/env bash
# Stop what start.sh started, its jobs included. `stop.sh --clean` removes its files as well.
# PREFIX must be what it was when starting.
set -euo pipefail

SCRIPT=stop.sh
# shellcheck source-path=SCRIPTDIR source=prefix.sh
. "$(dirname "${BASH_SOURCE[0]}")/prefix.sh"

case ${1:-} in
'' | --clean) ;;
*)
  echo "stop.sh: $1: say nothing or --clean" >&2
  exit 2
  ;;
esac
[ "$(id -u)" = 0 ] || fail 'must run as root'
if ! is_ours; then
  echo "stop.sh: there is no $PREFIX (set PREFIX to where it is)" >&2
  exit 0
fi
export SLURM_CONF=$CONF

everything() {
  local file
  for file in "$PREFIX"/run/slurmd.*.pid; do running slurmd "$file"; done
  running slurmctld "$PREFIX/run/slurmctld.pid"
  running munged "$PREFIX/run/munged.pid"
}

if [ -n "$(running slurmctld "$PREFIX/run/slurmctld.pid")" ]; then
  scancel --quiet --state=RUNNING --state=SUSPENDED --state=PENDING || true
  for _ in $(seq 20); do
    [ -z "$(squeue -h 2>/dev/null)" ] && break
    sleep 0.5
  done
fi
for signal in TERM KILL; do
  mapfile -t pids < <(everything)
  [ ${#pids[@]} -gt 0 ] || break
  kill -"$signal" "${pids[@]}" 2>/dev/null || true
  for _ in $(seq 50); do
    [ -z "$(everything)" ] && break
    sleep 0.1
  done
done

if [ "$(readlink "$LINK" 2>/dev/null)" = "$CONF" ]; then rm "$LINK"; fi
if [ "${1:-}" = --clean ]; then rm -rf "$PREFIX"; fi
