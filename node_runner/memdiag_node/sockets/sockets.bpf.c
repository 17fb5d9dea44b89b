// sockets.bpf.c - find and describe every socket of the node.
//
// Two ways to find a socket, one to describe it.
//   task_file      every socket and pipe that an fd of a process holds, in any network namespace, with the fd; also
//                  other files whose operations user space knows (file_kinds)
//   tcp udp unix netlink   the sockets of the reader's own network namespace, also those that no fd holds
//   bpf_map bpf_prog       every BPF map and program, held by an fd or not
//   describe       run by user space (BPF_PROG_RUN), BATCH sockets at a time. walker.bpf.c finds more by walking.
//   note_read      attached while user space watches sockets: marks those that are read from
//
//   subjects       addresses to describe. Written by user space, 0 at the end.
//   descriptions   one for each subject, at the same index. Written here, read by user space after each run.
//   file_kinds     file operations (f_op) -> kind of the file. Written by user space, which learns new ones from the
//                  records of task_file.
//   watched        sockets by address, written by user space; counts how often each was read from, and how much.
//
// Iterators: kernel/bpf/task_iter.c, net/ipv4/tcp_ipv4.c, net/ipv4/udp.c, net/unix/af_unix.c, net/netlink/af_netlink.c.
// An address may be stale when it is described, so everything is read by bpf_probe_read_kernel, and user space compares
// descriptions taken before and after.
//
// Defines from source.py: offsets in bytes from BTF (an absent field's whole feature is off: HAS_...), sizes in bytes,
// AF_ and IPPROTO_ numbers of the ABI (include/linux/socket.h, include/uapi/linux/in.h), BATCH, WATCHED and FILE_KINDS in
// entries, and the constants in records: NAME_BYTES, KIND_, PRESENT_, and the flags IS_ORPHANED, HAS_SOCKET, HAS_FILE,
// HAS_FIN, IS_WINDOW_CLOSED, COUNTS_READS, COUNTS_SENDS.

#include "memory.bpf.h"

struct task_struct;
struct file;

struct found {
    u64 socket; // address of the struct sock, or of the file's other object: pipe_inode_info, bpf_map, tun_file, ...
    u32 pid;    // as in the reader's /proc; 0 if no fd was seen
    u32 fd;
    u32 pipe_inode; // 0 unless it is a pipe
    u32 kind;
};

struct description {
    u64 socket;
    u64 inode;
    u64 peer_inode;
    u64 vsock_queue;      // address of the transport's own receive queue, 0 if there is none
    u64 rx_ring, tx_ring; // addresses of a packet socket's block vectors, 0 if there is none
    u64 bytes_received;   // TCP: in order, since it was connected; 0 unless some wait to be read
    u64 bytes_acked;      // TCP: acknowledged by the peer; 0 unless some wait to be
    u32 netns;            // inode number
    u32 receive_packets, write_packets, error_packets, reader_packets, vsock_packets;
    u32 receive_charge_bytes, write_queued_bytes, backlog_bytes;
    u32 copied_seq, received_seq;
    u32 unaccepted;
    u32 rx_ring_blocks, rx_ring_order, tx_ring_blocks, tx_ring_order;
    u32 local_number, remote_number; // port, netlink port id or group, interface index
    u32 local_cid, remote_cid;       // vsock
    u32 data_age_jiffies;            // since TCP received data
    u32 delivered_age_ms;            // since TCP's peer acknowledged data
    u16 family, protocol, type;
    u8 state, flags, present, local_name_bytes, remote_name_bytes, unused[5];
    u8 local_address[16], remote_address[16]; // IPv4 in the first four bytes
    u8 local_name[NAME_BYTES], remote_name[NAME_BYTES];
};

BPF_F_TABLE("array", u32, u64, subjects, BATCH, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct description, descriptions, BATCH, BPF_F_MMAPABLE);
struct reads {
    u64 calls, bytes;
};
BPF_F_TABLE("hash", u64, struct reads, watched, WATCHED, 0);
BPF_F_TABLE("hash", u64, u32, file_kinds, FILE_KINDS, 0);

// The process's number in the pid namespace of the reader (kernel/pid.c, __task_pid_nr_ns).
static inline u32 process_id(u64 task)
{
    u64 leader = 0, pid = 0, own_pid = 0;
    u32 level = 0, number = 0;
    READ(own_pid, bpf_get_current_task(), TASK_THREAD_PID);
    READ(level, own_pid, PID_LEVEL);
    READ(leader, task, TASK_GROUP_LEADER);
    READ(pid, leader, TASK_THREAD_PID);
    READ(number, pid, PID_NUMBERS + (u64)level * UPID_SIZE);
    return number;
}

// The kind of a file by its operations. If user space does not know them yet, they go into a record of their own before
// that of the file. Both are in the same piece of the output: the kernel never splits what one run has written.
static inline u32 kind_of_file(struct seq_file *seq, u64 operations)
{
    struct found unknown = {.socket = operations, .kind = KIND_OPERATIONS};
    u32 *kind = file_kinds.lookup(&operations);
    if (kind)
        return *kind;
    if (!operations)
        return KIND_OTHER;
    bpf_seq_write(seq, &unknown, sizeof(unknown));
    return KIND_UNNAMED;
}

// A file that is not a socket. Returns the address of its object, NULL for one that is not of interest.
static inline u64 describe_file(struct seq_file *seq, struct found *found, u64 file)
{
    u64 inode = 0, number = 0, operations = 0, object = 0;
    u16 mode = 0;
    READ(object, file, FILE_PRIVATE);
    if (!object)
        return 0;
    READ(inode, file, FILE_INODE);
    READ(mode, inode, INODE_MODE);
    if ((mode & S_IFMT) == S_IFIFO) {
        READ(number, inode, INODE_NUMBER);
        found->pipe_inode = number;
        found->kind = KIND_PIPE;
        return object;
    }
    READ(operations, file, FILE_OPERATIONS);
    found->kind = kind_of_file(seq, operations);
    return found->kind == KIND_OTHER ? 0 : object;
}

struct bpf_iter__task_file {
    struct iterator_meta *meta;
    struct task_struct *task;
    u32 fd;
    struct file *file;
};
int bpf_iter__task_file(struct bpf_iter__task_file *ctx)
{
    struct file *file = ctx->file;
    struct task_struct *task = ctx->task;
    struct found found = {.kind = KIND_SOCKET};
    u64 operations = 0;
    if (!file || !task)
        return 0;
    u64 socket = (u64)bpf_sock_from_file(file);
    if (socket)
        READ(found.socket, socket, SOCKET_SK);
    else
        found.socket = describe_file(ctx->meta->seq, &found, (u64)file);
    if (!found.socket)
        return 0;
    found.pid = process_id((u64)task);
    found.fd = ctx->fd;
    if (socket && !fact(FACT_SOCKET_FILE_OPERATIONS)) {
        READ(operations, (u64)file, FILE_OPERATIONS);
        learn(FACT_SOCKET_FILE_OPERATIONS, operations);
    }
    bpf_seq_write(ctx->meta->seq, &found, sizeof(found));
    return 0;
}

static inline int write_found(struct seq_file *seq, u64 object, u32 kind)
{
    struct found found = {.socket = object, .kind = kind};
    if (object)
        bpf_seq_write(seq, &found, sizeof(found));
    return 0;
}

struct bpf_iter__tcp {
    struct iterator_meta *meta;
    void *sk_common;
    u32 uid;
};
int bpf_iter__tcp(struct bpf_iter__tcp *ctx)
{
    return write_found(ctx->meta->seq, (u64)ctx->sk_common, KIND_SOCKET);
}

struct bpf_iter__udp {
    struct iterator_meta *meta;
    void *udp_sk;
    u32 uid;
};
int bpf_iter__udp(struct bpf_iter__udp *ctx)
{
    return write_found(ctx->meta->seq, (u64)ctx->udp_sk, KIND_SOCKET);
}

struct bpf_iter__unix {
    struct iterator_meta *meta;
    void *unix_sk;
    u32 uid;
};
int bpf_iter__unix(struct bpf_iter__unix *ctx)
{
    return write_found(ctx->meta->seq, (u64)ctx->unix_sk, KIND_SOCKET);
}

struct bpf_iter__netlink {
    struct iterator_meta *meta;
    void *sk;
};
int bpf_iter__netlink(struct bpf_iter__netlink *ctx)
{
    return write_found(ctx->meta->seq, (u64)ctx->sk, KIND_SOCKET);
}

struct bpf_iter__bpf_map {
    struct iterator_meta *meta;
    void *map;
};
int bpf_iter__bpf_map(struct bpf_iter__bpf_map *ctx)
{
    return write_found(ctx->meta->seq, (u64)ctx->map, KIND_BPF_MAP);
}

struct bpf_iter__bpf_prog {
    struct iterator_meta *meta;
    void *prog;
};
int bpf_iter__bpf_prog(struct bpf_iter__bpf_prog *ctx)
{
    return write_found(ctx->meta->seq, (u64)ctx->prog, KIND_BPF_PROGRAM);
}

// The bound name of a UNIX socket, without its address family. Returns its length in bytes, 0 if it has none.
static inline u8 read_unix_name(u64 sk, u8 *name)
{
    u64 address = 0;
    u32 length = 0;
    READ(address, sk, UNIX_ADDRESS);
    if (!address)
        return 0;
    READ(length, address, UNIX_ADDRESS_LENGTH);
    if (length <= 2 || length > NAME_BYTES + 2)
        return 0;
    bpf_probe_read_kernel(name, NAME_BYTES, (void *)(address + UNIX_ADDRESS_NAME + 2));
    return length - 2;
}

// How far a TCP connection is in both directions; nothing if nothing waits, to spend no time on idle connections.
static inline void describe_progress(struct description *row, u64 sk)
{
#ifdef HAS_TCP_PROGRESS
    if (row->copied_seq != row->received_seq) {
        u32 received_at = 0;
        row->flags |= COUNTS_READS;
        READ(row->bytes_received, sk, TCP_BYTES_RECEIVED);
        READ(received_at, sk, TCP_DATA_TIME);
        if (received_at)
            row->data_age_jiffies = (u32)bpf_jiffies64() - received_at;
    }
    if (row->write_packets || row->present & PRESENT_RETRANSMIT) {
        u64 delivered_us = 0, now_us = bpf_ktime_get_ns() / 1000;
        u32 window = 1;
        row->flags |= COUNTS_SENDS;
        READ(row->bytes_acked, sk, TCP_BYTES_ACKED);
        READ(window, sk, TCP_SEND_WINDOW);
        if (!window)
            row->flags |= IS_WINDOW_CLOSED;
        READ(delivered_us, sk, TCP_DELIVERED_TIME);
        if (delivered_us && now_us > delivered_us)
            row->delivered_age_ms = (now_us - delivered_us) / 1000;
    }
#endif
}

static inline void describe_inet(struct description *row, u64 sk)
{
    u16 port = 0;
    READ(port, sk, SOCK_LOCAL_PORT);
    row->local_number = port;
    READ(port, sk, SOCK_REMOTE_PORT);
    row->remote_number = bpf_ntohs(port);
    if (row->family == AF_INET) {
        bpf_probe_read_kernel(row->local_address, 4, (void *)(sk + SOCK_LOCAL_V4));
        bpf_probe_read_kernel(row->remote_address, 4, (void *)(sk + SOCK_REMOTE_V4));
    } else {
#ifdef HAS_IPV6
        bpf_probe_read_kernel(row->local_address, 16, (void *)(sk + SOCK_LOCAL_V6));
        bpf_probe_read_kernel(row->remote_address, 16, (void *)(sk + SOCK_REMOTE_V6));
#endif
    }
    if (row->type == SOCK_DGRAM && (row->protocol == IPPROTO_UDP || row->protocol == IPPROTO_UDPLITE)) {
        READ(row->reader_packets, sk, UDP_READER_QUEUE + QUEUE_LENGTH);
    } else if (row->protocol == IPPROTO_TCP && row->type == SOCK_STREAM) {
        u64 first = 0;
        if (row->state == TCP_LISTEN) {
            READ(first, sk, LISTENER_ACCEPT_HEAD);
            if (first)
                row->present |= PRESENT_ACCEPT;
            return;
        }
        READ(row->copied_seq, sk, TCP_COPIED_SEQ);
        READ(row->received_seq, sk, TCP_RCV_NXT);
        READ(first, sk, TCP_OUT_OF_ORDER);
        if (first)
            row->present |= PRESENT_OUT_OF_ORDER;
        READ(first, sk, SOCK_RETRANSMIT);
        if (first)
            row->present |= PRESENT_RETRANSMIT;
        describe_progress(row, sk);
    }
}

static inline void describe_unix(struct description *row, u64 sk)
{
    u64 peer = 0, socket = 0;
    row->local_name_bytes = read_unix_name(sk, row->local_name);
    READ(peer, sk, UNIX_PEER);
    if (!peer)
        return;
    row->remote_name_bytes = read_unix_name(peer, row->remote_name);
    READ(socket, peer, SOCK_SOCKET);
    if (socket)
        READ(row->peer_inode, socket, SOCKET_INODE);
}

static inline void describe_packet(struct description *row, u64 sk)
{
#ifdef HAS_PACKET
    u16 protocol = 0;
    READ(row->local_number, sk, PACKET_INTERFACE);
    READ(protocol, sk, PACKET_PROTOCOL);
    row->protocol = bpf_ntohs(protocol);
    READ(row->rx_ring, sk, PACKET_RX_RING + RING_VECTOR);
    READ(row->rx_ring_blocks, sk, PACKET_RX_RING + RING_BLOCKS);
    READ(row->rx_ring_order, sk, PACKET_RX_RING + RING_ORDER);
    READ(row->tx_ring, sk, PACKET_TX_RING + RING_VECTOR);
    READ(row->tx_ring_blocks, sk, PACKET_TX_RING + RING_BLOCKS);
    READ(row->tx_ring_order, sk, PACKET_TX_RING + RING_ORDER);
#endif
}

static inline void describe_vsock(struct description *row, u64 sk)
{
#ifdef HAS_VSOCK
    READ(row->local_number, sk, VSOCK_LOCAL + SOCKADDR_VM_PORT);
    READ(row->local_cid, sk, VSOCK_LOCAL + SOCKADDR_VM_CID);
    READ(row->remote_number, sk, VSOCK_REMOTE + SOCKADDR_VM_PORT);
    READ(row->remote_cid, sk, VSOCK_REMOTE + SOCKADDR_VM_CID);
#endif
#ifdef HAS_VIRTIO_VSOCK
    u64 transport = 0, owner = 0;
    READ(transport, sk, VSOCK_TRANSPORT_STATE);
    READ(owner, transport, VIRTIO_VSOCK_OWNER);
    if (transport && owner == sk) { // other transports (VMCI, Hyper-V) have a different struct there
        row->vsock_queue = transport + VIRTIO_VSOCK_QUEUE;
        READ(row->vsock_packets, transport, VIRTIO_VSOCK_QUEUE + QUEUE_LENGTH);
    }
#endif
}

// Whether `sk` still is a full socket, in a network namespace.
static inline int is_socket(struct description *row, u64 sk, u64 *net)
{
    u64 operations = 0;
    u32 references = 0;
    READ(row->state, sk, SOCK_STATE);
    if (row->state == TCP_TIME_WAIT || row->state == TCP_NEW_SYN_RECV)
        return 0; // these have no queues
    if (READ(row->family, sk, SOCK_FAMILY) || READ(references, sk, SOCK_REFERENCES) || !references)
        return 0; // its memory stays readable after it is freed
    READ(*net, sk, SOCK_NET);
    READ(operations, *net, NET_OPERATIONS);
    return operations == fact(FACT_NET_OPERATIONS); // ... and may be reused for anything
}

// What refers to the socket, and whether its protocol or its peer is done with it.
static inline void describe_holder(struct description *row, u64 sk)
{
    u64 socket = 0, file = 0, flags = 0;
    READ(socket, sk, SOCK_SOCKET);
    if (socket) {
        row->flags |= HAS_SOCKET;
        READ(row->inode, socket, SOCKET_INODE);
        READ(file, socket, SOCKET_FILE);
        if (file)
            row->flags |= HAS_FILE;
    }
    READ(flags, sk, SOCK_FLAGS);
    if (flags & (1ULL << SOCK_DEAD))
        row->flags |= IS_ORPHANED;
    if (flags & (1ULL << SOCK_DONE))
        row->flags |= HAS_FIN;
}

// The queues that every socket has.
static inline void describe_queues(struct description *row, u64 sk)
{
    u64 first = 0;
    READ(row->receive_packets, sk, SOCK_RECEIVE_QUEUE + QUEUE_LENGTH);
    READ(row->write_packets, sk, SOCK_WRITE_QUEUE + QUEUE_LENGTH);
    READ(row->error_packets, sk, SOCK_ERROR_QUEUE + QUEUE_LENGTH);
    READ(row->receive_charge_bytes, sk, SOCK_RECEIVE_CHARGE);
    READ(row->write_queued_bytes, sk, SOCK_WRITE_QUEUED);
    READ(row->backlog_bytes, sk, SOCK_BACKLOG_LENGTH);
    if (row->state == TCP_LISTEN) // a child keeps its listener's value
        READ(row->unaccepted, sk, SOCK_UNACCEPTED);
    READ(first, sk, SOCK_BACKLOG_HEAD);
    if (first)
        row->present |= PRESENT_BACKLOG;
}

static inline void describe_one(struct description *row, u64 sk)
{
    u64 net = 0;
    u16 wide = 0;
    __builtin_memset(row, 0, sizeof(*row));
    if (!is_socket(row, sk, &net))
        return;
    row->socket = sk; // set last: a description without it is not valid
    READ(wide, sk, SOCK_PROTOCOL);
    row->protocol = wide;
    READ(wide, sk, SOCK_TYPE);
    row->type = wide;
    READ(row->netns, net, NET_INODE);
    describe_holder(row, sk);
    describe_queues(row, sk);
    if (row->family == AF_INET || row->family == AF_INET6)
        describe_inet(row, sk);
    else if (row->family == AF_UNIX)
        describe_unix(row, sk);
    else if (row->family == AF_NETLINK)
        READ(row->local_number, sk, NETLINK_PORT);
    else if (row->family == AF_PACKET)
        describe_packet(row, sk);
    else if (row->family == AF_VSOCK)
        describe_vsock(row, sk);
}

int describe(void *ctx)
{
    learn(FACT_JIFFIES, bpf_jiffies64());
    NO_UNROLL
    for (u32 i = 0; i < BATCH; i++) {
        u32 at = i;
        u64 *subject = subjects.lookup(&at);
        struct description *row = descriptions.lookup(&at);
        if (!subject || !row || !*subject)
            break;
        describe_one(row, *subject);
    }
    return 0;
}

// sock_recv_length(sk, ret, flags): include/trace/events/sock.h, since Linux 6.3. Hit by every call that receives, even
// if it failed (-EAGAIN is the only error that certainly took nothing) or only peeked.
int note_read(struct bpf_raw_tracepoint_args *ctx)
{
    u64 sk = ctx->args[0];
    s32 received = ctx->args[1], flags = ctx->args[2];
    struct reads *reads = watched.lookup(&sk);
    if (!reads || received == -EAGAIN || flags & MSG_PEEK)
        return 0;
    ATOMIC_ADD(&reads->calls, 1);
    if (received > 0)
        ATOMIC_ADD(&reads->bytes, received);
    return 0;
}
