#!/bin/sh
# enter.sh ROOT COMMAND...: run COMMAND in the arm64 system ROOT, or here where ROOT is "/".
# Called by root.py in a mount namespace of its own, which takes these mounts with it.
set -e
root=$1
shift

# The kernel is told to run arm64 programs with QEMU. F opens QEMU now, so that it is found inside the root too. From
# Linux 6.7 on this ends with the last mount of binfmt_misc, so each command may have to say it again.
binfmt=/proc/sys/fs/binfmt_misc
[ -e $binfmt/register ] || mount -t binfmt_misc binfmt_misc $binfmt
if [ ! -e $binfmt/qemu-aarch64 ]; then
    magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    printf '%s' ":qemu-aarch64:M::$magic:$mask:$(command -v qemu-aarch64-static):F" >$binfmt/register ||
        [ -e $binfmt/qemu-aarch64 ] # another command was faster
fi

[ "$root" != / ] || exec "$@"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
exec chroot "$root" "$@"
