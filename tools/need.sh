#!/bin/sh
# Sees to it that the programs a make target needs are there: names what is missing, and installs it with apt-get when that is possible.
# usage: tools/need.sh demo|test
set -eu

missing=""
need() { # need PROGRAM PACKAGE
    command -v "$1" >/dev/null 2>&1 || case " $missing " in *" $2 "*) ;; *) missing="$missing $2" ;; esac
}

need qemu-system-x86_64 qemu-system-x86
if [ "${1:-}" = test ]; then
    need gcc gcc
    need ld binutils
    [ -e /usr/include/stdio.h ] || missing="$missing libc6-dev"
    need busybox busybox
    [ -e /usr/include/linux/kvm.h ] || missing="$missing linux-libc-dev"
    [ -e /usr/include/xen/xen.h ] || missing="$missing libxen-dev"
    need iasl acpica-tools
    need passt passt
    need qemu-nbd qemu-utils
    need mke2fs e2fsprogs
    need gdb gdb
fi
echo "need: guest kernels and busybox are fetched from Debian's and PyPI's packages into ${XENPY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/xenpy}"
[ -n "$missing" ] || exit 0
echo "need: Debian packages missing here:$missing"
if ! command -v apt-get >/dev/null 2>&1; then
    echo "need: no apt-get; install them with your distribution's package manager" >&2
    exit 0
fi
if [ "$(id -u)" = 0 ]; then as_root=""; elif sudo -n true 2>/dev/null; then as_root="sudo"; else
    echo "need: not root: run 'sudo apt-get install$missing'; what needs them is skipped meanwhile" >&2
    exit 0
fi
# shellcheck disable=SC2086
$as_root apt-get -qq update || true
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive $as_root apt-get -qq -y install --no-install-recommends $missing >/dev/null
