"""Docker's default seccomp profile as tables: which system calls a container may make, and on which
condition.

Everything that no rule lets through fails with EPERM. The facts are those of moby's profiles module (seccomp
v1, August 2026), newer than the engine 26 that distributions ship: since 25 io_uring is no longer allowed
(too many ways out of a container), and AF_ALG sockets are refused as AF_VSOCK ones are (the kernel's crypto
interface was a way to root).
"""

from __future__ import annotations

from dataclasses import dataclass
from errno import ENOSYS

# unshare(2): namespaces that clone(2) must not make without CAP_SYS_ADMIN
NAMESPACE_FLAGS = 0x7E020000
AF_ALG = 38
AF_VSOCK = 40


@dataclass(frozen=True)
class ArgumentTest:
    """`op` compares argument `index` with `value`; with MASKED_EQ, (argument & value) with `masked`."""

    index: int
    op: str
    value: int
    masked: int = 0


@dataclass(frozen=True)
class Rule:
    """Calls that are allowed (or, with `errno`, answered with that error) when every condition holds.

    `capability`: the container has it; `without`: it does not have it. `arches`: Go's names of the host's
    architecture, none for all; `not_arches`: the host is none of these. `kernel`: at least this version.
    """

    calls: tuple[str, ...]
    capability: str = ""
    without: str = ""
    arches: tuple[str, ...] = ()
    not_arches: tuple[str, ...] = ()
    kernel: tuple[int, int] = (0, 0)
    tests: tuple[ArgumentTest, ...] = ()
    errno: int = 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# What any program may do, by subject. Names of other architectures and of newer kernels are in the lists as
# well: a compiler of the profile skips what it does not know.
ALWAYS = {
    "files and directories": _names("""
        access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat
        faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat
        fcntl fcntl64 fdatasync flock fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64
        futimesat getcwd getdents getdents64 ioctl lchown lchown32 link linkat _llseek lseek lstat lstat64
        mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 pipe pipe2 pread64 preadv
        preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv rename renameat renameat2
        rmdir sendfile sendfile64 splice stat stat64 statfs statfs64 statx symlink symlinkat sync
        sync_file_range syncfs tee truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64
        utimes vmsplice write writev
    """),
    "extended attributes": _names("""
        fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat
        llistxattr lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat
    """),
    "asking about mounts": _names("listmount statmount"),
    "waiting for descriptors": _names("""
        epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old
        eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
        _newselect poll ppoll ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4
    """),
    "asynchronous input and output": _names("""
        io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit
    """),
    "sockets": _names("""
        accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg
        recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair
    """),
    "memory": _names("""
        brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2
        mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free
        pkey_mprotect process_mrelease remap_file_pages
    """),
    "processes and threads": _names("""
        capget capset execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait
        futex_waitv futex_wake get_robust_list get_thread_area getcpu getegid getegid32 geteuid geteuid32
        getgid getgid32 getgroups getgroups32 getpgid getpgrp getpid getppid getpriority getresgid getresgid32
        getresuid getresuid32 getrlimit getrusage getsid gettid getuid getuid32 ioprio_get ioprio_set
        pidfd_open prctl prlimit64 rseq set_robust_list set_thread_area set_tid_address setfsgid setfsgid32
        setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setpriority setregid setregid32
        setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setuid setuid32 times
        ugetrlimit vfork wait4 waitid waitpid
    """),
    "scheduling": _names("""
        sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
        sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
        sched_setparam sched_setscheduler sched_yield
    """),
    "signals": _names("""
        alarm kill pause pidfd_send_signal restart_syscall rt_sigaction rt_sigpending rt_sigprocmask
        rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo
        sigaltstack sigprocmask sigreturn tgkill tkill
    """),
    "System V and POSIX messages": _names("""
        ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
        mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop
        semtimedop_time64 shmat shmctl shmdt shmget
    """),
    "time": _names("""
        adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
        clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time timer_create
        timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
        timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64
    """),
    "restricting oneself": _names("landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp"),
    "the machine": _names("getrandom riscv_hwprobe sysinfo uname uretprobe"),
}

_PERSONALITIES = (
    0x0,  # Linux
    0x8,  # Linux, 32-bit addresses
    0x20000,  # uname shows 2.6
    0x20008,
    0xFFFFFFFF,  # ask only
)

# Address families that are not AF_ALG or AF_VSOCK, as (mask, value) of the low 32 bits, which are all that
# the kernel looks at. moby compares all 64 bits (less than 38, 39, more than 40), and so lets family 38
# through when bit 32 is set.
_FAMILIES = (
    (0xFFFFFFE0, 0),  # 0 to 31
    (0xFFFFFFFC, 32),  # 32 to 35
    (0xFFFFFFFE, 36),  # 36, 37
    (0xFFFFFFFF, 39),
    (0xFFFFFFFF, 41),
    (0xFFFFFFFE, 42),  # 42, 43
    (0xFFFFFFFC, 44),  # 44 to 47
    (0xFFFFFFF0, 48),  # 48 to 63, which no kernel has yet
)

RULES: tuple[Rule, ...] = (
    Rule(tuple(sorted(name for names in ALWAYS.values() for name in names))),
    # since 4.8 ptrace cannot be used to get around the filter
    Rule(("process_vm_readv", "process_vm_writev", "ptrace"), kernel=(4, 8)),
    *(Rule(("socket",), tests=(ArgumentTest(0, "SCMP_CMP_MASKED_EQ", *family),)) for family in _FAMILIES),
    *(Rule(("personality",), tests=(ArgumentTest(0, "SCMP_CMP_EQ", value),)) for value in _PERSONALITIES),
    Rule(("swapcontext", "sync_file_range2"), arches=("ppc64le",)),
    Rule(
        _names("arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2"),
        arches=("arm", "arm64"),
    ),
    Rule(("arch_prctl",), arches=("amd64", "x32")),
    Rule(("modify_ldt",), arches=("amd64", "x32", "x86")),
    Rule(("s390_pci_mmio_read", "s390_pci_mmio_write", "s390_runtime_instr"), arches=("s390", "s390x")),
    Rule(("riscv_flush_icache",), arches=("riscv64",)),
    Rule(("open_by_handle_at",), capability="CAP_DAC_READ_SEARCH"),
    Rule(
        _names("""
            bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr
            lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open
            quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare
        """),
        capability="CAP_SYS_ADMIN",
    ),
    Rule(
        ("clone",),
        without="CAP_SYS_ADMIN",
        not_arches=("s390", "s390x"),
        tests=(ArgumentTest(0, "SCMP_CMP_MASKED_EQ", NAMESPACE_FLAGS),),
    ),
    Rule(  # there the flags are the second argument
        ("clone",),
        without="CAP_SYS_ADMIN",
        arches=("s390", "s390x"),
        tests=(ArgumentTest(1, "SCMP_CMP_MASKED_EQ", NAMESPACE_FLAGS),),
    ),
    # a filter cannot look into clone3's structure: with ENOSYS, libc goes on to clone
    Rule(("clone3",), without="CAP_SYS_ADMIN", errno=ENOSYS),
    Rule(("reboot",), capability="CAP_SYS_BOOT"),
    Rule(("chroot",), capability="CAP_SYS_CHROOT"),
    Rule(("delete_module", "finit_module", "init_module"), capability="CAP_SYS_MODULE"),
    Rule(("acct",), capability="CAP_SYS_PACCT"),
    Rule(
        _names("kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
        capability="CAP_SYS_PTRACE",
    ),
    Rule(("ioperm", "iopl"), capability="CAP_SYS_RAWIO"),
    Rule(("clock_settime", "clock_settime64", "settimeofday", "stime"), capability="CAP_SYS_TIME"),
    Rule(("vhangup",), capability="CAP_SYS_TTY_CONFIG"),
    Rule(_names("get_mempolicy mbind set_mempolicy set_mempolicy_home_node"), capability="CAP_SYS_NICE"),
    Rule(("syslog",), capability="CAP_SYSLOG"),
    Rule(("bpf",), capability="CAP_BPF"),
    Rule(("perf_event_open",), capability="CAP_PERFMON"),
)

# By Go's name of the host's architecture: its own name in the OCI spec, then those of the older ones that it
# also runs.
ARCHITECTURES = {
    "amd64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "arm64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "mips64": ("SCMP_ARCH_MIPS64", "SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64N32"),
    "mips64p32": ("SCMP_ARCH_MIPS64N32", "SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64"),
    "mips64le": ("SCMP_ARCH_MIPSEL64", "SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64N32"),
    "mips64p32le": ("SCMP_ARCH_MIPSEL64N32", "SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64"),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
    "riscv64": ("SCMP_ARCH_RISCV64",),
    "loong64": ("SCMP_ARCH_LOONGARCH64",),
}

# uname(2)'s machine → Go's name
MACHINES = {
    "x86_64": "amd64",
    "i386": "386",
    "i686": "386",
    "aarch64": "arm64",
    "armv6l": "arm",
    "armv7l": "arm",
    "loongarch64": "loong64",
}
