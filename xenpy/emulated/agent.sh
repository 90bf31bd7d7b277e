# Process 1 of the emulated host: runs one command at a time for the outer side, which speaks over a virtio-serial port.
#
#   to us, the first three followed by SIZE bytes
#   setup SIZE                    shell text, run at once
#   input SIZE                    standard input of the next command
#   run SIZE MARK IN OUT ERR      shell text of the command, what ends its output, and where its standard files are
#   size ROWS COLUMNS             the terminal's
#   kill                          end the command and all it has started
#   from us
#   ready                         once
#   done STATUS                   after setup, and after run when nothing of the command is left
here=/run/xenpy
job=/sys/fs/cgroup/job
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
cd /

receive() {
    dd bs="$1" count=1 iflag=fullblock of="$2" <&3 2>/dev/null
}

# A port can be opened only once at a time, which a program that opens /dev/stdout would find out: it gets FIFOs instead.
# Descriptors 4 and 5 keep these alive, with what is in them, until both ends have been opened.
relay() {
    { cat; printf %s "$mark"; } <"$1" >"$2" 4>&- 5>&- &
}

run() {
    mark=$1 in=$2 out=$3 err=$4 terminal=
    echo 2 >/proc/sys/vm/drop_caches # what was known of the outer file system, which may have changed
    exec 4<>$here/stdout 5<>$here/stderr
    case $in in
    /dev/hvc*) terminal=-c ;;
    /dev/vport*)
        cat <"$in" >$here/stdin 4>&- 5>&- &
        in=$here/stdin
        ;;
    esac
    case $out in /dev/vport*)
        relay $here/stdout "$out"
        out=$here/stdout
        ;;
    esac
    case $err in /dev/vport*)
        relay $here/stderr "$err"
        err=$here/stderr
        ;;
    esac
    (
        echo 0 >$job/cgroup.procs
        exec setsid $terminal $here/busybox sh $here/command <"$in" >"$out" 2>"$err" 3>&- 4>&- 5>&- 6>&- 7>&-
    )
    status=$?
    # What the command has left behind goes too, or its output would never end.
    echo 1 >$job/cgroup.kill
    while grep -q "populated 1" $job/cgroup.events; do usleep 1000; done
    sync
    exec 4>&- 5>&-
    if [ "$out" = /dev/hvc0 ] || [ "$err" = /dev/hvc0 ]; then printf %s "$mark" >/dev/hvc0; fi
    echo "done $status" >&3
}

until [ -c /dev/vport0p1 ]; do usleep 1000; done
mkfifo $here/stdin $here/stdout $here/stderr $here/commands
exec 3<>/dev/vport0p1 6<>$here/commands
exec 7<>/dev/hvc0 # a terminal that nobody has open forgets its size
echo ready >&3

# A shell has what it runs in the background ignore SIGINT, so this is in the background and the commands are not.
{
    while read -r verb first second third fourth fifth <&3; do
        case $verb in
        setup)
            receive "$first" $here/setup
            $here/busybox sh $here/setup
            echo "done $?" >&3
            ;;
        input) receive "$first" $here/input ;;
        run)
            receive "$first" $here/command
            echo "$second $third $fourth $fifth" >&6
            ;;
        size) stty -F /dev/hvc0 rows "$first" cols "$second" ;;
        kill) echo 1 >$job/cgroup.kill ;;
        esac
    done
    # The outer side is gone.
    poweroff -f
} &

while read -r mark in out err <&6; do
    run "$mark" "$in" "$out" "$err"
done
