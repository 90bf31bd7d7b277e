#!/bin/busybox sh
# First program of the emulated host: mounts the outer machine's root below an overlay in memory and moves into it.
export PATH=/bin
/bin/busybox --install -s /bin
/bin/busybox mount -t proc proc /proc  # from here on busybox finds itself, and so its programs, in /proc/self/exe
for module in $(cat /etc/modules); do
    insmod "/lib/modules/$module.ko" $(cat "/etc/options/$module" 2>/dev/null)
done
mkdir -p /outer /memory /new
mount -t 9p -o "trans=virtio,version=9p2000.L,msize=$(cat /etc/msize),cache=loose,ro" root /outer
mount -t tmpfs -o mode=0755 memory /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/outer,upperdir=/memory/upper,workdir=/memory/work overlay /new

# Of these the outer machine's are of no use in here, wherever its own are mounted.
for place in proc sys dev run; do
    [ -d "/new/$place" ] || mkdir "/new/$place"
done
mount -t proc proc /new/proc
mount -t sysfs sys /new/sys
mount -t cgroup2 cgroup /new/sys/fs/cgroup
mount -t devtmpfs dev /new/dev
ln -s /proc/self/fd /new/dev/fd
for number in 0:stdin 1:stdout 2:stderr; do
    ln -s "/proc/self/fd/${number%:*}" "/new/dev/${number#*:}"
done
mkdir /new/dev/pts /new/dev/shm
mount -t devpts -o ptmxmode=0666 pts /new/dev/pts
mount -t tmpfs -o mode=1777 shm /new/dev/shm
mount -t tmpfs -o mode=0755 run /new/run
mkdir -p /new/run/lock /new/run/xenpy /new/sys/fs/cgroup/job
ip link set lo up
cp /bin/busybox /etc/agent /new/run/xenpy/
exec switch_root /new /run/xenpy/busybox sh /run/xenpy/agent
