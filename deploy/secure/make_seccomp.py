"""Which system calls may Sluice's containers make? Prints seccomp-sluice.json, from what strace saw.

strace -D -f -qq -o api.calls sluice api      # and the other commands, while they do their work
python deploy/secure/make_seccomp.py *.calls > deploy/secure/seccomp-sluice.json
"""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

# What the container's runtime and its process 1 (docker-init) call, and the shells of health checks and scripts.
OF_THE_RUNTIME = """
    access arch_prctl capget capset chdir clone clone3 close dup dup2 dup3 execve execveat exit exit_group faccessat2
    fchdir fchmod fchmodat fchown fcntl fork fstat fstatfs futex getcwd getdents64 getegid geteuid getgid getgroups
    getpgid getpgrp getpid getppid getrlimit getsid getuid ioctl kill lseek madvise mmap mprotect munmap nanosleep
    newfstatat openat pause pipe pipe2 poll prctl pread64 prlimit64 read readlink readlinkat restart_syscall
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigtimedwait sched_getaffinity sched_yield select
    set_robust_list set_tid_address setgid setgroups setpgid setsid setuid sigaltstack stat statfs tgkill umask uname
    unlink unlinkat vfork wait4 waitid write writev
"""

# Another libc, kernel or version of Python makes the second of a pair where the first was seen.
SIBLINGS = (
    ("open", "openat", "openat2", "creat"),
    ("stat", "fstat", "lstat", "newfstatat", "statx"),
    ("poll", "ppoll", "select", "pselect6"),
    ("epoll_create", "epoll_create1"),
    ("epoll_wait", "epoll_pwait", "epoll_pwait2"),
    ("eventfd", "eventfd2"),
    ("accept", "accept4"),
    ("recvfrom", "recvmsg", "recvmmsg"),
    ("sendto", "sendmsg", "sendmmsg"),
    ("read", "readv", "pread64", "preadv"),
    ("write", "writev", "pwrite64", "pwritev"),
    ("mkdir", "mkdirat"),
    ("rename", "renameat", "renameat2"),
    ("nanosleep", "clock_nanosleep"),
    ("clock_gettime", "clock_getres", "gettimeofday", "time", "times"),
    ("getrlimit", "prlimit64"),
    ("mmap", "mremap", "munmap", "brk", "madvise"),
    ("futex", "futex_waitv", "membarrier", "rseq"),
    ("getrandom",),
)

# libuv tries these at its start, and does without them. Many holes of kernels were there.
REFUSED = {"io_uring_setup", "io_uring_enter", "io_uring_register"}


def calls_in(path: Path) -> set[str]:
    """Return the names of the calls in a log of strace: `12 openat(…`."""
    with path.open(errors="replace") as lines:
        return {match[1] for line in lines if (match := re.match(r"\d+ +(\w+)\(", line))}


def profile(called: Iterable[str]) -> dict[str, object]:
    names = set(called) | set(OF_THE_RUNTIME.split())
    for family in SIBLINGS:
        if names & set(family):
            names |= set(family)
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": [{"names": sorted(names - REFUSED), "action": "SCMP_ACT_ALLOW"}],
    }


if __name__ == "__main__":
    print(json.dumps(profile(set().union(*(calls_in(Path(name)) for name in sys.argv[1:]))), indent=2))
