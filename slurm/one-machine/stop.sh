#!/usr/bin/env bash
# Stop what start.sh started, its jobs included. `stop.sh --clean` removes its files as well.
# PREFIX must be what it was when starting.
set -euo pipefail

PREFIX=${PREFIX:-${TMPDIR:-/tmp}/calibdask-slurm}
CONF=$PREFIX/slurm.conf
LINK=/etc/slurm/slurm.conf
MARK='# Written by calibdask, slurm/one-machine/start.sh'

case ${1:-} in
'' | --clean) ;;
*)
  echo "stop.sh: $1: say nothing or --clean" >&2
  exit 2
  ;;
esac
if ! grep -qsxF "$MARK" "$CONF"; then
  echo "stop.sh: nothing of start.sh's in $PREFIX (set PREFIX to where it is)" >&2
  exit 0
fi
export SLURM_CONF=$CONF

running() { # NAME PIDFILE: its process, if it is alive and still that program
  local pid
  pid=$(cat "$2" 2>/dev/null) || return 0
  if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ] &&
    ! grep -qs '^State:.Z' "/proc/$pid/status"; then
    echo "$pid"
  fi
}

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
