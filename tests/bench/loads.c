// loads.c - loads on the page and the slab allocator, each for a fixed amount of work, to compare tracers by their cost.
//
//   loads LOAD AMOUNT    prints the CPU seconds of the work, with those of child processes, then the wall time
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB (1 << 20)
static char buffer[MIB];

static void check(int ok, const char *what)
{
    if (!ok) {
        perror(what);
        exit(1);
    }
}

// Touch every page of 64 MiB of anonymous memory and free it.
static void faults(int amount)
{
    for (int i = 0; i < amount; i++) {
        char *area = mmap(NULL, 64 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        check(area != MAP_FAILED, "mmap");
        madvise(area, 64 * MIB, MADV_NOHUGEPAGE);
        for (long at = 0; at < 64 * MIB; at += 4096)
            area[at] = 1;
        munmap(area, 64 * MIB);
    }
}

// Read a file of 64 MiB that is not in the page cache.
static void files(int amount)
{
    char name[] = "memdiag-bench-XXXXXX";
    int fd = mkstemp(name);
    check(fd >= 0, "mkstemp");
    unlink(name);
    for (int i = 0; i < 64; i++)
        check(write(fd, buffer, MIB) == MIB, "write");
    fsync(fd);
    for (int i = 0; i < amount; i++) {
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        for (int at = 0; at < 64; at++)
            check(pread(fd, buffer, MIB, (off_t)at * MIB) == MIB, "pread");
    }
}

// Fill a pipe with 1 MiB and empty it.
static void pipes(int amount)
{
    int ends[2];
    check(pipe(ends) == 0 && fcntl(ends[1], F_SETPIPE_SZ, MIB) > 0, "pipe");
    for (int i = 0; i < amount; i++) {
        check(write(ends[1], buffer, MIB) == MIB, "write");
        for (long left = MIB; left > 0;)
            left -= read(ends[0], buffer, left);
    }
}

// Send 10,000 datagrams of 100 bytes through a pair of unix sockets; few enough wait at a time for any queue.
static void datagrams(int amount)
{
    int ends[2];
    check(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0, "socketpair");
    for (int i = 0; i < 1250 * amount; i++) {
        for (int sent = 0; sent < 8; sent++)
            check(write(ends[0], buffer, 100) == 100, "write");
        for (int received = 0; received < 8; received++)
            check(read(ends[1], buffer, 100) == 100, "read");
    }
}

// Create 100 empty files and remove them, again and again, in a tmpfs: a disk would vary more than any tracer costs.
static void creation(int amount)
{
    char directory[] = "/dev/shm/memdiag-bench-XXXXXX", name[16];
    check(mkdtemp(directory) != NULL && chdir(directory) == 0, "mkdtemp");
    for (int i = 0; i < 10 * amount; i++) {
        for (int file = 0; file < 100; file++) {
            sprintf(name, "%d", file);
            int fd = open(name, O_CREAT | O_EXCL | O_WRONLY, 0600);
            check(fd >= 0, "open");
            close(fd);
        }
        for (int file = 0; file < 100; file++) {
            sprintf(name, "%d", file);
            check(unlink(name) == 0, "unlink");
        }
    }
    check(chdir("/") == 0 && rmdir(directory) == 0, "rmdir");
}

// Stay on one CPU: the placement of two communicating processes matters more than any tracer.
static void pin(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    check(sched_setaffinity(0, sizeof(set), &set) == 0, "sched_setaffinity");
}

static int last_cpu(void)
{
    return sysconf(_SC_NPROCESSORS_ONLN) - 1;
}

// Send 64 MiB over loopback TCP to a process that reads it on another CPU.
static void loopback(int amount)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    check(bind(listener, (struct sockaddr *)&address, length) == 0 && listen(listener, 1) == 0, "listen");
    getsockname(listener, (struct sockaddr *)&address, &length);
    pin(0);
    if (fork() == 0) {
        pin(last_cpu());
        int sender = socket(AF_INET, SOCK_STREAM, 0);
        check(connect(sender, (struct sockaddr *)&address, length) == 0, "connect");
        for (int i = 0; i < 64 * amount; i++)
            for (long left = MIB; left > 0;)
                left -= write(sender, buffer, left);
        _exit(0);
    }
    int receiver = accept(listener, NULL, NULL);
    check(receiver >= 0, "accept");
    while (read(receiver, buffer, MIB) > 0)
        ;
    wait(NULL);
}

// Start /bin/true 100 times.
static void processes(int amount)
{
    for (int i = 0; i < 100 * amount; i++) {
        if (fork() == 0) {
            execl("/bin/true", "true", NULL);
            _exit(1);
        }
        wait(NULL);
    }
}

static double cpu_seconds(int who)
{
    struct rusage usage;
    getrusage(who, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static double wall_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

int main(int count, char **words)
{
    struct {
        const char *name;
        void (*run)(int);
    } loads[] = {{"faults", faults},       {"files", files},       {"pipes", pipes},        {"loopback", loopback},
                 {"datagrams", datagrams}, {"creation", creation}, {"processes", processes}};
    for (size_t i = 0; count == 3 && i < sizeof(loads) / sizeof(loads[0]); i++)
        if (!strcmp(words[1], loads[i].name)) {
            pin(last_cpu());
            double cpu = cpu_seconds(RUSAGE_SELF) + cpu_seconds(RUSAGE_CHILDREN), wall = wall_seconds();
            loads[i].run(atoi(words[2]));
            wall = wall_seconds() - wall;
            printf("%.6f %.6f\n", cpu_seconds(RUSAGE_SELF) + cpu_seconds(RUSAGE_CHILDREN) - cpu, wall);
            return 0;
        }
    fprintf(stderr, "usage: loads faults|files|pipes|loopback|datagrams|creation|processes AMOUNT\n");
    return 2;
}
