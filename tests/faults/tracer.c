/* Runs a command and counts the file events it makes below a folder; can spoil one of them.
 *
 *   tracer ROOT TRACE DATA MODE N [ERRNO] -- command arguments...
 *   tracer ROOT TRACE DATA MODE N [ERRNO] -- @PID
 *   tracer --filter
 *
 * The second form goes on with a process that has stopped itself, leads a process group, and has the
 * seccomp filter that the third prints, in hexadecimal: without it no event would be seen.
 *
 * An event is a system call that may change what lies below ROOT: made by any thread or process of
 * the command, through any library. TRACE gets a line an event, DATA the bytes written ("-": none
 * of them is kept). MODE says what happens to event N (counted from 1):
 *
 *   none     nothing; everything is only written down
 *   before   the whole tree of processes is killed (SIGKILL) before the event
 *   torn     a write writes half of its bytes, then the kill; another event: as `before`
 *   after    the kill comes when the event has happened
 *   fail     the event does not happen and returns -ERRNO
 *   failing  so do all later ones that would take space (open, write, mkdir, link, rename); with
 *            EROFS or EACCES all that change anything
 *   short    a write writes half of its bytes and says so
 *   vanish   when the event has happened, the file that it was about is gone; or, with all that is in
 *            it, the folder that was made or renamed
 *   lose:PATH  before the event that file is gone
 *
 * A line of TRACE: number, thread, name, result, device:inode, offset, length, place in DATA, path,
 * second path; separated by tabs, "-" where there is none. An `open` that empties its file has the
 * length 0. The offset of a `fallocate` is the size that its file has at least then, -1 where it
 * changes none. Linux, x86_64.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NONE, BY_PATH, BY_FD, AT }; /* how a path is given: by descriptor and path is AT */
enum { OPENS = 1, WRITES = 2, SPACE = 4, VECTOR = 8 };

struct call {
    long number;
    const char *name;
    int first, argument;           /* of the first path: how, and which argument */
    int second, argument2;
    int size;                      /* argument that holds the length of a write, or -1 */
    int traits;
};

static const struct call CALLS[] = {
    {SYS_open, "open", BY_PATH, 0, NONE, 0, -1, OPENS | SPACE},
    {SYS_openat, "open", AT, 0, NONE, 0, -1, OPENS | SPACE},
    {SYS_creat, "open", BY_PATH, 0, NONE, 0, -1, OPENS | SPACE},
    {SYS_write, "write", BY_FD, 0, NONE, 0, 2, WRITES | SPACE},
    {SYS_pwrite64, "pwrite", BY_FD, 0, NONE, 0, 2, WRITES | SPACE},
    {SYS_writev, "writev", BY_FD, 0, NONE, 0, 2, WRITES | SPACE | VECTOR},
    {SYS_pwritev, "pwritev", BY_FD, 0, NONE, 0, 2, WRITES | SPACE | VECTOR},
    {SYS_pwritev2, "pwritev", BY_FD, 0, NONE, 0, 2, WRITES | SPACE | VECTOR},
    {SYS_sendfile, "sendfile", BY_FD, 0, NONE, 0, 3, WRITES | SPACE},
    {SYS_copy_file_range, "copy_file_range", BY_FD, 2, NONE, 0, 4, WRITES | SPACE},
    {SYS_splice, "splice", BY_FD, 2, NONE, 0, 4, WRITES | SPACE},
    {SYS_ftruncate, "truncate", BY_FD, 0, NONE, 0, -1, SPACE},
    {SYS_truncate, "truncate", BY_PATH, 0, NONE, 0, -1, SPACE},
    {SYS_fallocate, "fallocate", BY_FD, 0, NONE, 0, -1, SPACE},
    {SYS_fsync, "fsync", BY_FD, 0, NONE, 0, -1, 0},
    {SYS_fdatasync, "fsync", BY_FD, 0, NONE, 0, -1, 0},
    {SYS_rename, "rename", BY_PATH, 0, BY_PATH, 1, -1, SPACE},
    {SYS_renameat, "rename", AT, 0, AT, 2, -1, SPACE},
    {SYS_renameat2, "rename", AT, 0, AT, 2, -1, SPACE},
    {SYS_link, "link", BY_PATH, 0, BY_PATH, 1, -1, SPACE},
    {SYS_linkat, "link", AT, 0, AT, 2, -1, SPACE},
    {SYS_symlink, "symlink", BY_PATH, 1, NONE, 0, -1, SPACE},
    {SYS_symlinkat, "symlink", AT, 1, NONE, 0, -1, SPACE},
    {SYS_unlink, "unlink", BY_PATH, 0, NONE, 0, -1, 0},
    {SYS_unlinkat, "unlink", AT, 0, NONE, 0, -1, 0},
    {SYS_rmdir, "rmdir", BY_PATH, 0, NONE, 0, -1, 0},
    {SYS_mkdir, "mkdir", BY_PATH, 0, NONE, 0, -1, SPACE},
    {SYS_mkdirat, "mkdir", AT, 0, NONE, 0, -1, SPACE},
    {SYS_chmod, "chmod", BY_PATH, 0, NONE, 0, -1, 0},
    {SYS_fchmod, "chmod", BY_FD, 0, NONE, 0, -1, 0},
    {SYS_fchmodat, "chmod", AT, 0, NONE, 0, -1, 0},
    {SYS_utimensat, "utime", AT, 0, NONE, 0, -1, 0},
    {SYS_mknod, "mknod", BY_PATH, 0, NONE, 0, -1, SPACE},
    {SYS_mknodat, "mknod", AT, 0, NONE, 0, -1, SPACE},
    {SYS_openat2, "openat2", AT, 0, NONE, 0, -1, SPACE},
    {SYS_mmap, "mmap", BY_FD, 4, NONE, 0, -1, 0},
    {SYS_io_uring_setup, "io_uring", BY_FD, 0, NONE, 0, -1, 0},
};
enum { CALL_COUNT = sizeof CALLS / sizeof *CALLS };

static const char *root, *mode;
static size_t root_length;
static long wanted, counted, data_place;
static int error_number, failing, doomed;
static pid_t command;
static FILE *trace, *data;

/* A traced thread, and what it is in the middle of. */
struct pending {
    pid_t thread;
    const struct call *call;
    long number, offset;
    int kill_after, vanishes;
    int halved;             /* argument that was halved, or -1 */
    unsigned long whole;    /* what it was */
    char path[PATH_MAX], path2[PATH_MAX];
    struct pending *next;
};
static struct pending *pendings;

static void die(const char *what)
{
    perror(what);
    exit(125);
}

static struct pending *pending_of(pid_t thread)
{
    for (struct pending *p = pendings; p; p = p->next)
        if (p->thread == thread)
            return p;
    struct pending *p = calloc(1, sizeof *p);
    if (!p)
        die("calloc");
    p->thread = thread;
    p->next = pendings;
    return pendings = p;
}

static void forget(pid_t thread)
{
    for (struct pending **at = &pendings; *at; at = &(*at)->next)
        if ((*at)->thread == thread) {
            struct pending *gone = *at;
            *at = gone->next;
            free(gone);
            return;
        }
}

static const struct call *call_of(long number)
{
    for (int i = 0; i < CALL_COUNT; i++)
        if (CALLS[i].number == number)
            return &CALLS[i];
    return NULL;
}

/* The zero-terminated text at an address of a thread; false if there is none. */
static int read_text(pid_t thread, unsigned long address, char *text)
{
    size_t have = 0;
    while (have < PATH_MAX - 1) {
        size_t page = 4096 - ((address + have) & 4095), want = PATH_MAX - 1 - have;
        struct iovec to = {text + have, want < page ? want : page};
        struct iovec from = {(void *)(address + have), to.iov_len};
        ssize_t got = process_vm_readv(thread, &to, 1, &from, 1, 0);
        if (got <= 0)
            return 0;
        if (memchr(text + have, 0, got))
            return 1;
        have += got;
    }
    return 0;
}

static int read_link(const char *link, char *path)
{
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return 1;
}

static int fd_path(pid_t thread, int descriptor, char *path)
{
    char link[64];
    if (descriptor == AT_FDCWD)
        snprintf(link, sizeof link, "/proc/%d/cwd", thread);
    else
        snprintf(link, sizeof link, "/proc/%d/fd/%d", thread, descriptor);
    return read_link(link, path);
}

/* Absolute path without "." and ".." and doubled slashes; links are not followed. */
static void absolute(const char *base, const char *text, char *path)
{
    char whole[2 * PATH_MAX + 2], *out = path;
    snprintf(whole, sizeof whole, "%s/%s", text[0] == '/' ? "" : base, text);
    for (char *part = strtok(whole, "/"); part; part = strtok(NULL, "/")) {
        if (!strcmp(part, "."))
            continue;
        if (!strcmp(part, "..")) {
            while (out > path && *--out != '/')
                ;
            continue;
        }
        if (out - path + strlen(part) + 2 > PATH_MAX)
            break;
        *out++ = '/';
        out = stpcpy(out, part);
    }
    *out = 0;
}

static int below_root(const char *path)
{
    return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static int path_of(pid_t thread, const uint64_t *arguments, int how, int argument, char *path)
{
    char text[PATH_MAX], base[PATH_MAX];
    path[0] = 0;
    if (how == BY_FD)
        return fd_path(thread, (int)arguments[argument], path);
    int at = how == AT;
    if (!read_text(thread, arguments[argument + at], text))
        return 0;
    if (text[0] != '/' && !fd_path(thread, at ? (int)arguments[argument] : AT_FDCWD, base))
        return 0;
    absolute(base, text, path);
    return 1;
}

/* Where a write begins: given, the end of the file for one that appends, or the position. */
static long offset_of(pid_t thread, const struct call *call, const uint64_t *arguments)
{
    char file[64], line[128];
    int descriptor = (int)arguments[call->argument];
    if (call->number == SYS_pwrite64 || call->number == SYS_pwritev ||
        (call->number == SYS_pwritev2 && (long)arguments[3] != -1))
        return (long)arguments[3];
    if ((call->number == SYS_copy_file_range || call->number == SYS_splice) && arguments[3]) {
        long given = 0;
        struct iovec to = {&given, sizeof given}, from = {(void *)arguments[3], sizeof given};
        if (process_vm_readv(thread, &to, 1, &from, 1, 0) == sizeof given)
            return given;
    }
    long position = 0, flags = 0;
    snprintf(file, sizeof file, "/proc/%d/fdinfo/%d", thread, descriptor);
    FILE *info = fopen(file, "r");
    while (info && fgets(line, sizeof line, info)) {
        sscanf(line, "pos: %ld", &position);
        sscanf(line, "flags: %lo", &flags);
    }
    if (info)
        fclose(info);
    if (flags & O_APPEND) {
        struct stat about;
        snprintf(file, sizeof file, "/proc/%d/fd/%d", thread, descriptor);
        if (!stat(file, &about))
            return about.st_size;
    }
    return position;
}

static long open_flags(const struct call *call, const uint64_t *arguments)
{
    if (call->number == SYS_creat)
        return O_CREAT | O_TRUNC;
    return (long)arguments[1 + (call->first == AT)];
}

static int is_event(const struct call *call, const uint64_t *arguments)
{
    if (call->traits & OPENS) {
        long flags = open_flags(call, arguments);
        return (flags & (O_CREAT | O_TRUNC)) && (flags & O_TMPFILE) != O_TMPFILE;
    }
    if (call->number == SYS_mmap)
        return (arguments[2] & PROT_WRITE) && (arguments[3] & MAP_SHARED) &&
               !(arguments[3] & MAP_ANONYMOUS);
    return 1;
}

static void keep_data(pid_t thread, const struct pending *p, int descriptor, long length)
{
    char file[64], buffer[65536];
    snprintf(file, sizeof file, "/proc/%d/fd/%d", thread, descriptor);
    int from = open(file, O_RDONLY);
    if (from < 0)
        die("the file that was written cannot be read");
    for (long done = 0; done < length;) {
        long want = length - done < (long)sizeof buffer ? length - done : (long)sizeof buffer;
        ssize_t got = pread(from, buffer, want, p->offset + done);
        if (got <= 0)
            die("what was written cannot be read back");
        fwrite(buffer, 1, got, data);
        done += got;
    }
    close(from);
    data_place += length;
}

/* Files that were mapped to be written to: what is stored there makes no event, so the whole file is
 * kept when it is synced. */
static struct stat *mapped;
static int mapped_count;

static int is_mapped(const struct stat *about)
{
    for (int i = 0; i < mapped_count; i++)
        if (mapped[i].st_dev == about->st_dev && mapped[i].st_ino == about->st_ino)
            return 1;
    return 0;
}

static void map(const struct stat *about)
{
    if (is_mapped(about))
        return;
    if (!(mapped = realloc(mapped, (mapped_count + 1) * sizeof *mapped)))
        die("realloc");
    mapped[mapped_count++] = *about;
}

static void write_down(struct pending *p, const uint64_t *arguments, long result)
{
    char file[PATH_MAX + 64];
    struct stat about = {0};
    const struct call *call = p->call;
    long length = -1, place = -1;
    if (call->traits & WRITES)
        length = result;
    else if (call->number == SYS_ftruncate || call->number == SYS_truncate)
        length = (long)arguments[1];
    else if ((call->traits & OPENS) && (open_flags(call, arguments) & O_TRUNC))
        length = 0;
    else if (call->number == SYS_fallocate && !arguments[1])
        p->offset = (long)(arguments[2] + arguments[3]);
    if (call->first == BY_FD)
        snprintf(file, sizeof file, "/proc/%d/fd/%d", p->thread, (int)arguments[call->argument]);
    else
        snprintf(file, sizeof file, "%s", call->second == NONE ? p->path : p->path2);
    int known = result >= 0 && !(call->first == BY_FD ? stat(file, &about) : lstat(file, &about));
    if ((call->traits & WRITES) && result > 0 && data) {
        place = data_place;
        keep_data(p->thread, p, (int)arguments[call->argument], result);
    }
    if (known && call->number == SYS_mmap)
        map(&about);
    /* a folder may have got the number of a mapped file that is gone */
    if (known && data && (call->number == SYS_fsync || call->number == SYS_fdatasync) &&
        S_ISREG(about.st_mode) && is_mapped(&about)) {
        place = data_place;
        length = about.st_size;
        p->offset = 0;
        keep_data(p->thread, p, (int)arguments[call->argument], length);
    }
    if (!trace)
        return;
    fprintf(trace, "%ld\t%d\t%s\t%ld\t", p->number, p->thread, call->name, result);
    if (known)
        fprintf(trace, "%lx:%lx\t", (long)about.st_dev, (long)about.st_ino);
    else
        fputs("-\t", trace);
    fprintf(trace, "%ld\t%ld\t%ld\t%s\t%s\n", p->offset, length, place,
            p->path[0] ? p->path : "-", p->path2[0] ? p->path2 : "-");
}

static void kill_all(void)
{
    doomed = 1;
    fflush(NULL);
    kill(-command, SIGKILL); /* its process group; others die with the tracer (EXITKILL) */
    for (struct pending *p = pendings; p; p = p->next)
        kill(p->thread, SIGKILL);
}

static int remove_one(const char *path, const struct stat *about, int kind, struct FTW *where)
{
    (void)about, (void)kind, (void)where;
    return remove(path);
}

/* Removes what an event was about; a folder only if it was made or renamed. */
static void vanish(const struct pending *p)
{
    const char *path = p->call->second == NONE ? p->path : p->path2;
    int whole = !strcmp(p->call->name, "mkdir") || !strcmp(p->call->name, "rename");
    struct stat about;
    if (below_root(path) && !lstat(path, &about) && (whole || !S_ISDIR(about.st_mode)))
        nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void set_registers(pid_t thread, int argument, unsigned long value, int skip, long result)
{
    struct user_regs_struct registers;
    if (ptrace(PTRACE_GETREGS, thread, NULL, &registers))
        return;
    unsigned long long *arguments[] = {&registers.rdi, &registers.rsi, &registers.rdx,
                                       &registers.r10, &registers.r8,  &registers.r9};
    if (argument >= 0)
        *arguments[argument] = value;
    if (skip) {
        registers.orig_rax = -1;
        registers.rax = result;
    }
    if (ptrace(PTRACE_SETREGS, thread, NULL, &registers))
        die("PTRACE_SETREGS");
}

static void halve(struct pending *p, int argument, unsigned long size)
{
    p->halved = argument;
    p->whole = size;
    set_registers(p->thread, argument, size / 2, 0, 0);
}

/* A thread stands before a system call. Returns how it goes on. */
static int enter(pid_t thread, long number, const uint64_t *arguments)
{
    struct pending *p = pending_of(thread);
    p->call = NULL;
    const struct call *call = call_of(number);
    if (!call || !is_event(call, arguments))
        return PTRACE_CONT;
    p->path[0] = p->path2[0] = 0;
    int here = path_of(thread, arguments, call->first, call->argument, p->path) &&
               below_root(p->path);
    if (call->second != NONE)
        here |= path_of(thread, arguments, call->second, call->argument2, p->path2) &&
                below_root(p->path2);
    if (call->number == SYS_io_uring_setup) {
        fputs("tracer: the command uses io_uring, whose events cannot be seen\n", stderr);
        exit(125);
    }
    if (!here)
        return PTRACE_CONT;
    if (call->number == SYS_fallocate && arguments[1] & ~(uint64_t)FALLOC_FL_KEEP_SIZE) {
        fputs("tracer: the command takes bytes out of a file, which cannot be told\n", stderr);
        exit(125);
    }
    p->call = call;
    p->number = ++counted;
    p->offset = call->traits & WRITES ? offset_of(thread, call, arguments) : -1;
    p->kill_after = p->vanishes = 0;
    p->halved = -1;
    int chosen = p->number == wanted;
    unsigned long size = call->size >= 0 ? arguments[call->size] : 0;
    int halves = (call->traits & WRITES) && size > 1;
    int all = (error_number == EROFS || error_number == EACCES) && strcmp(call->name, "fsync") &&
              strcmp(call->name, "mmap");
    int refused = call->traits & SPACE || all;
    if (failing ? refused
                : chosen && (!strcmp(mode, "fail") || !strcmp(mode, "failing"))) {
        failing |= !strcmp(mode, "failing");
        set_registers(thread, -1, 0, 1, -error_number);
    } else if (chosen && !strcmp(mode, "short")) {
        if (halves)
            halve(p, call->size, size);
    } else if (chosen && !strcmp(mode, "torn") && halves) {
        halve(p, call->size, size);
        p->kill_after = 1;
    } else if (chosen && !strcmp(mode, "after")) {
        p->kill_after = 1;
    } else if (chosen && !strcmp(mode, "vanish")) {
        p->vanishes = 1;
    } else if (chosen && !strncmp(mode, "lose:", 5)) {
        if (unlink(mode + 5))
            die(mode);
    } else if (chosen && (!strcmp(mode, "before") || !strcmp(mode, "torn"))) {
        if (trace)
            fprintf(trace, "%ld\t%d\t%s\tkilled\t-\t%ld\t-1\t-1\t%s\t%s\n", p->number, thread,
                    call->name, p->offset, p->path[0] ? p->path : "-",
                    p->path2[0] ? p->path2 : "-");
        p->call = NULL;
        kill_all();
        return PTRACE_CONT;
    }
    return PTRACE_SYSCALL;
}

/* A thread comes back from a system call with a result. */
static void leave(pid_t thread, long result)
{
    struct pending *p = pending_of(thread);
    struct user_regs_struct registers;
    if (!p->call || ptrace(PTRACE_GETREGS, thread, NULL, &registers))
        return;
    uint64_t arguments[] = {registers.rdi, registers.rsi, registers.rdx,
                         registers.r10, registers.r8,  registers.r9};
    write_down(p, arguments, result);
    if (p->halved >= 0) /* code around the call may count on its registers */
        set_registers(thread, p->halved, p->whole, 0, 0);
    if (p->vanishes)
        vanish(p);
    p->call = NULL;
    if (p->kill_after)
        kill_all();
}

/* A thread has stopped at a system call, or at the filter before one. Returns how it goes on. */
static int at_call(pid_t thread)
{
    struct __ptrace_syscall_info info;
    if (ptrace(PTRACE_GET_SYSCALL_INFO, thread, sizeof info, &info) <= 0)
        return PTRACE_CONT;
    if (info.op == PTRACE_SYSCALL_INFO_SECCOMP)
        return enter(thread, (long)info.seccomp.nr, (const uint64_t *)info.seccomp.args);
    if (info.op == PTRACE_SYSCALL_INFO_EXIT)
        leave(thread, info.exit.rval);
    return PTRACE_CONT;
}

/* What stops a thread before the calls that may be events; the rest go on at full speed. Of `mmap`, which
 * allocates memory, only what is shared with a file is one.
 */
static struct sock_fprog filter(void)
{
    static struct sock_filter program[CALL_COUNT + 8];
    const struct sock_filter load_number =
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    const struct sock_filter load_flags =
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[3]));
    int at = 0;
    program[at++] = load_number;
    program[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 3);
    program[at++] = load_flags;
    program[at++] =
        (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, MAP_SHARED, CALL_COUNT + 2, 0);
    program[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    for (int i = 0; i < CALL_COUNT; i++)
        program[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CALLS[i].number,
                                                     CALL_COUNT - i, 0);
    program[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    program[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
    return (struct sock_fprog){at, program};
}

static void run(char **arguments)
{
    struct sock_fprog program = filter();
    setpgid(0, 0);
    raise(SIGSTOP);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        die("seccomp");
    execvp(arguments[0], arguments);
    die(arguments[0]);
}

int main(int count, char **arguments)
{
    int at = 6;
    if (count == 2 && !strcmp(arguments[1], "--filter")) {
        struct sock_fprog program = filter();
        const unsigned char *bytes = (const unsigned char *)program.filter;
        for (size_t i = 0; i < program.len * sizeof *program.filter; i++)
            printf("%02x", bytes[i]);
        return 0;
    }
    if (count < 8) {
        fputs("usage: tracer ROOT TRACE DATA MODE N [ERRNO] -- command...\n", stderr);
        return 125;
    }
    root = arguments[1];
    root_length = strlen(root);
    mode = arguments[4];
    wanted = strtol(arguments[5], NULL, 10);
    if (strcmp(arguments[at], "--"))
        error_number = atoi(arguments[at++]);
    if (strcmp(arguments[at], "--") || !arguments[at + 1])
        return 125;
    if (strcmp(arguments[2], "-") && !(trace = fopen(arguments[2], "we")))
        die(arguments[2]);
    if (strcmp(arguments[3], "-") && !(data = fopen(arguments[3], "we")))
        die(arguments[3]);
    int status, code = 125;
    if (arguments[at + 1][0] == '@') {
        command = atoi(arguments[at + 1] + 1);
    } else {
        command = fork();
        if (command < 0)
            die("fork");
        if (!command)
            run(arguments + at + 1);
        if (waitpid(command, &status, WUNTRACED) < 0)
            die("waitpid");
    }
    long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACESECCOMP | PTRACE_O_TRACEFORK |
                   PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC |
                   PTRACE_O_EXITKILL;
    if (ptrace(PTRACE_SEIZE, command, NULL, options))
        die("PTRACE_SEIZE");
    kill(command, SIGCONT);
    for (;;) {
        pid_t thread = waitpid(-1, &status, __WALL);
        if (thread < 0)
            break; /* nobody is left */
        if (WIFEXITED(status) || WIFSIGNALED(status)) {
            forget(thread);
            if (thread == command)
                code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            continue;
        }
        pending_of(thread); /* known from its first stop on */
        int signal = WSTOPSIG(status), event = status >> 16, how = PTRACE_CONT, deliver = 0;
        if (doomed) {
            kill(thread, SIGKILL);
        } else if (event == PTRACE_EVENT_SECCOMP || signal == (SIGTRAP | 0x80)) {
            how = at_call(thread);
        } else if (event == PTRACE_EVENT_STOP) {
            if (signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU)
                how = PTRACE_LISTEN;
        } else if (!event) {
            deliver = signal;
        }
        ptrace(how, thread, NULL, deliver);
    }
    if (trace)
        fprintf(trace, "end\t%d\n", code);
    fflush(NULL);
    return code;
}
