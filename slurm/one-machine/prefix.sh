# shellcheck shell=bash disable=SC2034
# Read by start.sh and stop.sh, which set SCRIPT to their own name: where the one-machine SLURM lives.
# Its daemons run as root and execute what lies there, so nobody but root may ever write to it.

# A place that only root can make.
PREFIX=${PREFIX:-/var/lib/calibdask-slurm}
CONF=$PREFIX/slurm.conf
LINK=/etc/slurm/slurm.conf
MARK='# Written by calibdask, slurm/one-machine/start.sh'

fail() {
  printf '%s: %s\n' "$SCRIPT" "$1" >&2
  exit 1
}

case $PREFIX in
/*) ;;
*) fail "PREFIX=$PREFIX: name it from the root (/...)" ;;
esac

# Nobody but root may change what is in a directory, or in one above it. Where many may write (/tmp),
# the sticky bit keeps them from renaming what is root's.
only_roots() { # DIRECTORY
  local place owner mode
  place=$(realpath -e "$1" 2>/dev/null) || fail "$1: there is no such directory"
  while :; do
    read -r owner mode < <(stat -c '%u %a' "$place")
    [ "$owner" = 0 ] ||
      fail "$place belongs to the user with the number $owner, not to root: choose another PREFIX"
    if ((0$mode & 022)) && ! ((0$mode & 01000)); then
      fail "others than root may write to $place (permissions $mode): choose another PREFIX"
    fi
    [ "$place" != / ] || break
    place=$(dirname "$place")
  done
}

# Whether start.sh made the prefix; what others made, or may write to, is not used.
is_ours() {
  [ -e "$PREFIX" ] || [ -L "$PREFIX" ] || return 1
  [ ! -L "$PREFIX" ] || fail "$PREFIX is a symbolic link: name the directory itself"
  only_roots "$PREFIX"
  ! ((0$(stat -c %a "$PREFIX") & 022)) ||
    fail "others than root may write to $PREFIX: choose another PREFIX"
  if [ -L "$CONF" ] || [ "$(stat -c %u "$CONF" 2>/dev/null)" != 0 ] || ! grep -qsxF "$MARK" "$CONF"; then
    fail "$PREFIX was not made by start.sh: choose another PREFIX or remove it"
  fi
}

# A pid file outlives its process: the number may be somebody else's by now, or that of a dead
# process which nobody has waited for, as in containers.
running() { # NAME PIDFILE: its process, if it is alive and still that program
  local pid
  pid=$(cat "$2" 2>/dev/null) || return 0
  if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ] &&
    ! grep -qs '^State:.Z' "/proc/$pid/status"; then
    echo "$pid"
  fi
}

alive() { [ -n "$(running "$@")" ]; } # NAME PIDFILE
