// walker.bpf.c - walk kernel lists of packets and pages to their last page.
//
// User space runs `walk` again and again (BPF_PROG_RUN). Each run moves one cursor by STEPS steps along a worklist; a
// step does a bounded amount of work (one packet, one node of a tree, one bucket). So a queue of any length is walked
// whole, although no program may loop that long.
//
//   work      what to walk. Written by user space.
//   cursor    where the walk is: reset by user space, moved here.
//   outputs   the records of what was found. Written here from cursor.position on; user space takes them, and sets the
//             position back.
//   scratch   working memory: too much for the stack.
//
// Nothing is locked. Every read may fault, every pointer may be stale: back links, parents and lengths are checked, and
// at the end that the item still begins with what it began with: a queue that was read from meanwhile does not. A walk
// that finds one wrong ends with STATUS_RACE for user space to walk again. Every item ends in one END record.
//
// Defines from the loader: offsets and sizes in bytes from BTF, PG_HEAD (enumerator), PAGE_SHIFT, STEPS, MAX_STEPS of one
// item, WORK and RECORDS in entries, MAX_FRAGMENTS per packet.

#define READ(destination, base, offset) \
    bpf_probe_read_kernel(&(destination), sizeof(destination), (void *)((u64)(base) + (offset)))

enum kind {
    KIND_PACKET_LIST,  // struct sk_buff_head
    KIND_PACKET_TREE,  // struct rb_root of sk_buffs
    KIND_PACKET_CHAIN, // pointer to an sk_buff, linked by next until NULL
    KIND_ACCEPT,       // pointer to a request_sock, linked by dl_next until NULL
    KIND_TABLE,        // `count` buckets, `stride` bytes apart, of sockets linked by a node `node` bytes inside
    KIND_NETS,         // list_head inside a struct net, on the list of all: tells the tables of each
    KIND_BLOCKS,       // `count` pointers into the linear map, `stride` bytes apart, each to a block of order `order`
    KIND_PIPE,         // struct pipe_inode_info
};

#define ITEM_UNIX 1    // packets carry a unix_skb_parms: files in flight
#define ITEM_EMBRYOS 2 // packets of a UNIX listener: each stands for a socket that nobody accepted yet

struct item {
    u64 head;
    u32 count; // of buckets or pointers; for a packet chain the most that it can hold
    u16 stride;
    u16 node;
    u8 kind;
    u8 flags;
    u8 order;
    u8 consumed; // where a packet's control block tells how much of it was read, in bytes; 0: such a packet is read whole
    u8 unused[4];
};

enum { RECORD_PACKET = 1, RECORD_IDENTITY, RECORD_FRAGMENT, RECORD_HEAD, RECORD_SOCKET, RECORD_NET, RECORD_END };

#define RECORD_IS_MEMBER 1   // of PACKET: part of a frag list, counted in its head's len and truesize
#define RECORD_UNREADABLE 2  // of PACKET, FRAGMENT: what lies behind it could not be read
#define RECORD_IS_USER 4     // of FRAGMENT, HEAD: a page of a process or of the page cache
#define RECORD_IS_DEVICE 8   // of FRAGMENT: device memory (net_iov), no page at all
#define RECORD_IS_SLAB 16    // of HEAD: from kmalloc, which the kernel counts as slab also where it takes whole pages

#define HEAD_UNIT_BYTES 16
#define CONTROL_MASK 63 // more than any offset in the 48 bytes of a control block

struct record {
    u64 value;
    u32 item;
    u8 type;
    u8 flags;
    u16 detail; // NET: which table; PACKET: size of a head from slab, in HEAD_UNIT_BYTES; FRAGMENT, HEAD: order; SOCKET: how; END: status
};

enum { TABLE_UNIX, TABLE_TCP, TABLE_UDP, TABLE_PACKET };
enum { SOCKET_LISTED = 1, SOCKET_UNACCEPTED, SOCKET_IN_FLIGHT };

enum { STATUS_WHOLE = 1, STATUS_RACE, STATUS_FAULT, STATUS_TOO_LONG, STATUS_TOO_DEEP };
enum { PHASE_START, PHASE_LIST, PHASE_DOWN, PHASE_VISIT, PHASE_RIGHT, PHASE_UP };

#define MAX_DEPTH 4       // of frag lists inside frag lists
#define IDENTITIES 4      // packets whose address and length are told, mixed, so that a later walk knows the queue again
#define STEP_RECORDS 64   // at most, of one step: a packet with all its fragments (MAX_SKB_FRAGS is at most 45)

struct cursor {
    u64 current, previous, last_page, files;
    u64 first; // what the item's head led to when the walk began; of a table whether a chain was lost
    u64 resume[MAX_DEPTH]; // where the walk goes on after each open frag list
    u64 linear_to_page, socket_file_operations, net_operations; // facts, from user space; 0 when unknown
    u32 item, items, position, done;
    u32 phase, in_tree, depth, file, count, steps, fragments, unused;
};

struct output {
    struct record records[RECORDS];
};

struct scratch {
    u8 packet[PACKET_SIZE];
    u8 shared[SHARED_SIZE];
    u8 page[PAGE_READ_BYTES];
    u64 buckets[8];
    u16 order, page_flags;
};

BPF_F_TABLE("array", u32, struct item, work, WORK, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct cursor, cursors, 1, BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct output, outputs, 1, BPF_F_MMAPABLE);
BPF_ARRAY(scratches, struct scratch, 1);

#define FIELD(type, memory, offset) (*(type *)((memory) + (offset)))

// The verifier follows both sides of every branch, for every fragment of every step, and from Linux 6.18 on both values of
// an arithmetic mask too. What runs for each fragment therefore computes with 0 and 1 instead: IS_SET(v) is 1 when v is
// not 0, IS_LESS(a, b) when a < b, as signed numbers that are not huge.
static inline u64 opaque(u64 value)
{
    asm volatile("" : "+r"(value)); // else the compiler sees that it is 0 or 1, and branches on it
    return value;
}
#define IS_SET(value) opaque(((value) | -(value)) >> 63)
#define IS_LESS(left, right) opaque(((u64)(left) - (u64)(right)) >> 63)

// From any page of a block to its head: returns it, leaves order and flags in scratch; 0 when it can't be read.
// A tail names its head (compound_head), or, where struct page's size is a power of two, keeps a mask that leads to it
// (compound_info, Linux 7.1); a mask has all high bits set, which no address of the page array has.
static inline u64 block_of(struct scratch *x, u64 page)
{
    u64 info = 0, head, readable;
    READ(info, page, PAGE_COMPOUND);
    head = info - 1;
#ifdef COMPOUND_MAY_BE_MASK
    head += ((page & info) - head) * (1 - IS_SET((info >> 30) ^ (~0ULL >> 30)));
#endif
    page += (head - page) * opaque(info & 1);
    readable = 1 - IS_SET((u64)bpf_probe_read_kernel(x->page, PAGE_READ_BYTES, (void *)page)); // else it leaves zeroes
    x->order = (FIELD(u8, x->page, PAGE_ORDER) & 31) * opaque(FIELD(u64, x->page, PAGE_FLAGS) >> PG_HEAD & 1);
    x->page_flags = IS_SET(FIELD(u64, x->page, PAGE_MAPPING)) * RECORD_IS_USER + (1 - readable) * RECORD_UNREADABLE;
    return page * readable;
}

static inline void put(struct cursor *s, struct output *out, u8 type, u8 flags, u16 detail, u64 value)
{
    // A run stops STEP_RECORDS before the end: the mask is for the verifier.
    struct record *record = &out->records[s->position & (RECORDS - 1)];
    record->value = value;
    record->item = s->item;
    record->type = type;
    record->flags = flags;
    record->detail = detail;
    s->position++;
}

// Keep what was put last only if `keep` is 1, not 0.
static inline void keep_if(struct cursor *s, u64 keep)
{
    s->position -= 1 - keep;
}

// A block that one fragment lies in; neighbours often share one, which is told once. Memory of a device (net_iov) has the
// low bit set (include/net/netmem.h) and no page.
static inline void put_block(struct scratch *x, struct cursor *s, struct output *out, u64 memory)
{
    u64 is_page = opaque(1 - (memory & 1)), block = block_of(x, memory * is_page) * is_page;
    put(s, out, RECORD_FRAGMENT, (1 - is_page) * RECORD_IS_DEVICE + x->page_flags * is_page, x->order, block);
    keep_if(s, 1 - (1 - IS_SET(block ^ s->last_page)) * IS_SET(block));
    s->last_page = block;
}

// A head that is no slab object but pages of its own: cut from a page fragment, or too large for any slab
// (mm/slab_common.c: beyond two pages kmalloc takes a compound page). Returns 1 when it is one, else 0. A page that can't
// be read or is too small means that the head is no memory of the linear map: netlink's may be vmalloc.
static inline u64 put_head(struct scratch *x, struct cursor *s, struct output *out, u64 head, u64 bytes)
{
    u64 is_cut = IS_SET((u64)(FIELD(u8, x->packet, PACKET_HEAD_FRAG_BYTE) & PACKET_HEAD_FRAG_MASK));
    u64 is_own = IS_SET(is_cut + IS_LESS(2ULL << PAGE_SHIFT, bytes)) * IS_SET(s->linear_to_page);
    u64 page = block_of(x, (s->linear_to_page + (head >> PAGE_SHIFT) * PAGE_STRUCT_SIZE) * is_own);
    is_own *= IS_SET(page) * (1 - IS_LESS(1ULL << (x->order + PAGE_SHIFT), bytes));
    put(s, out, RECORD_HEAD, x->page_flags + (1 - is_cut) * RECORD_IS_SLAB, x->order, page);
    keep_if(s, is_own * IS_SET(page ^ s->last_page));
    s->last_page += (page - s->last_page) * is_own;
    return is_own;
}

// One packet: its size, its head, what it carries. Its fragments and files are left to the next steps, so that the
// verifier follows those loops once. Returns its frag list, NULL when it has none.
static inline u64 visit(struct scratch *x, struct cursor *s, struct output *out, u64 item_flags, u64 consumed)
{
    u64 head = FIELD(u64, x->packet, PACKET_HEAD), end = FIELD(u32, x->packet, PACKET_END), bytes = end + SHARED_SIZE;
    u64 unreadable = IS_SET((u64)bpf_probe_read_kernel(x->shared, SHARED_SIZE, (void *)(head + end)));
    u64 is_unix = opaque(item_flags & ITEM_UNIX), is_member = IS_SET((u64)s->depth), is_own;
    u64 length = FIELD(u32, x->packet, PACKET_LENGTH);
    length -= FIELD(u32, x->packet, PACKET_CONTROL + (consumed & CONTROL_MASK)) * IS_SET(consumed) * (1 - is_member);
    put(s, out, RECORD_IDENTITY, 0, s->count, s->current ^ (length << 32));
    keep_if(s, IS_LESS(s->count, IDENTITIES) * (1 - is_member));
    put(s, out, RECORD_SOCKET, 0, SOCKET_UNACCEPTED, FIELD(u64, x->packet, PACKET_SOCKET));
    // A packet that was taken meanwhile and used again has no socket yet.
    keep_if(s, opaque(item_flags & ITEM_EMBRYOS) / ITEM_EMBRYOS * IS_SET(FIELD(u64, x->packet, PACKET_SOCKET)));
    is_own = put_head(x, s, out, head, bytes);
    put(s, out, RECORD_PACKET, is_member * RECORD_IS_MEMBER + unreadable * RECORD_UNREADABLE,
        bytes / HEAD_UNIT_BYTES * (1 - is_own), (length << 32) | FIELD(u32, x->packet, PACKET_TRUESIZE));
    s->fragments = FIELD(u8, x->shared, SHARED_FRAGMENT_COUNT); // a failed read leaves zeroes
    s->files = FIELD(u64, x->packet, PACKET_CONTROL + UNIX_FILES) * is_unix * IS_SET(s->socket_file_operations);
    s->file = 0;
    return FIELD(u64, x->shared, SHARED_FRAGMENT_LIST);
}

// The fragments of the packet that was visited last.
static inline void visit_fragments(struct scratch *x, struct cursor *s, struct output *out)
{
    u32 fragments = s->fragments;
    s->fragments = 0;
    _Pragma("nounroll") for (u32 i = 0; i < MAX_FRAGMENTS; i++)
    {
        asm volatile("" : "+r"(i)); // else the compiler counts down instead, and the verifier before Linux 6.8 loses count
        if (i >= fragments || i >= MAX_FRAGMENTS)
            break;
        u64 memory = FIELD(u64, x->shared, SHARED_FRAGMENTS + i * FRAGMENT_SIZE);
        put_block(x, s, out, memory);
    }
}

// SCM_RIGHTS: the next of the files that travel with the packet that was visited last (include/net/scm.h).
static inline void visit_file(struct cursor *s, struct output *out)
{
    u16 files = 0;
    u64 file = 0, operations = 0, socket = 0, sk = 0, at = s->file;
    READ(files, s->files, SCM_COUNT);
    READ(file, s->files, SCM_FILES + at * 8);
    s->file = at + 1;
    if (at >= files || at >= SCM_MAX_FILES) {
        s->files = 0;
        return;
    }
    READ(operations, file, FILE_OPERATIONS);
    if (operations != s->socket_file_operations)
        return;
    READ(socket, file, FILE_PRIVATE);
    READ(sk, socket, SOCKET_SK);
    if (sk)
        put(s, out, RECORD_SOCKET, 0, SOCKET_IN_FLIGHT, sk);
}

// Where a network namespace keeps its sockets: of each hash table the address, then the number of its buckets.
static inline void put_tables(struct cursor *s, struct output *out, u64 net)
{
#ifdef HAS_TABLES
    u64 address = 0, hash = 0;
    u32 mask = 0;
    READ(address, net, NET_UNIX_BUCKETS);
    put(s, out, RECORD_NET, 0, TABLE_UNIX, address);
    put(s, out, RECORD_NET, 0, TABLE_UNIX, UNIX_BUCKETS);
    READ(hash, net, NET_TCP_HASH);
    READ(address, hash, TCP_HASH_BUCKETS);
    READ(mask, hash, TCP_HASH_MASK);
    put(s, out, RECORD_NET, 0, TABLE_TCP, address);
    put(s, out, RECORD_NET, 0, TABLE_TCP, (u64)mask + 1);
    READ(hash, net, NET_UDP_TABLE);
    READ(address, hash, UDP_TABLE_SLOTS);
    READ(mask, hash, UDP_TABLE_MASK);
    put(s, out, RECORD_NET, 0, TABLE_UDP, address);
    put(s, out, RECORD_NET, 0, TABLE_UDP, (u64)mask + 1);
    put(s, out, RECORD_NET, 0, TABLE_PACKET, net + NET_PACKET_LIST);
    put(s, out, RECORD_NET, 0, TABLE_PACKET, 1);
#endif
}

// The next buffer of a pipe, from its tail to its head, then the pages that it keeps for the next write
// (include/linux/pipe_fs_i.h). Returns 0 when there is no more.
static inline int visit_pipe_slot(struct scratch *x, struct cursor *s, struct output *out, u64 pipe, u16 *status)
{
    u64 buffers = 0, page = 0;
    u32 head = 0, tail = 0, slots = 0, length = 0, at = s->count, used;
    READ(head, pipe, PIPE_HEAD);
    READ(tail, pipe, PIPE_TAIL);
    READ(slots, pipe, PIPE_SLOTS);
    READ(buffers, pipe, PIPE_BUFFERS);
    used = head - tail;
    if (!at)
        s->first = tail;
    if (s->first != tail) {
        *status = STATUS_RACE; // read meanwhile: the slots that are left are counted from another one
        return 1;
    }
    if (at < used && at < slots) {
        buffers += (u64)((tail + at) & (slots - 1)) * PIPE_BUFFER_SIZE;
        READ(page, buffers, PIPE_BUFFER_PAGE);
        READ(length, buffers, PIPE_BUFFER_LENGTH);
        put(s, out, RECORD_PACKET, 0, 0, (u64)length << 32);
    } else {
        at -= used;
        if (at >= PIPE_KEPT_PAGES)
            return 0;
        READ(page, pipe, PIPE_KEPT + (u64)at * 8);
    }
    if (page)
        put_block(x, s, out, page);
    return 1;
}

// How many packets there can be in the item's list or chain.
static inline u32 limit_of(struct item *item)
{
    u32 limit = item->count;
    if (item->kind == KIND_PACKET_LIST)
        READ(limit, item->head, QUEUE_LENGTH);
    return limit;
}

int walk(void *ctx)
{
    u32 zero = 0;
    struct cursor *s = cursors.lookup(&zero);
    struct scratch *x = scratches.lookup(&zero);
    struct output *out = outputs.lookup(&zero);
    if (!s || !x || !out)
        return 0;
    _Pragma("nounroll") for (int step = 0; step < STEPS; step++)
    {
        u32 at = s->item;
        u16 status = 0;
        u64 current = s->current;
        if (s->position > RECORDS - STEP_RECORDS)
            break; // no room for a step: user space takes the records
        // What the last packet left to do comes first.
        if (s->fragments) {
            visit_fragments(x, s, out);
            continue;
        }
        if (s->files) {
            visit_file(s, out);
            continue;
        }
        if (s->depth && !s->current) { // a frag list ends: on behind its head
            s->depth--;
            s->current = s->resume[s->depth & (MAX_DEPTH - 1)];
            if (!s->depth && s->in_tree)
                s->phase = PHASE_RIGHT;
            continue;
        }
        struct item *item = work.lookup(&at);
        if (at >= s->items || !item) {
            s->done = 1;
            break;
        }
        u8 kind = item->kind;
        if (s->phase == PHASE_START) {
            s->count = 0;
            s->depth = 0;
            s->steps = 0;
            s->last_page = 0;
            s->previous = item->head;
            s->current = 0;
            s->phase = PHASE_LIST;
            s->in_tree = kind == KIND_PACKET_TREE;
            if (s->in_tree)
                s->phase = PHASE_DOWN;
            if (kind != KIND_TABLE && kind != KIND_BLOCKS && kind != KIND_PIPE) {
                if (READ(s->current, item->head, 0))
                    status = STATUS_FAULT;
                else if (!s->current && kind != KIND_PACKET_LIST && kind != KIND_NETS)
                    status = STATUS_WHOLE;
            }
            s->first = s->current;
            if (s->in_tree)
                s->previous = 0;
        } else if (kind == KIND_ACCEPT) {
            u64 sk = 0, next = 0;
            if (!current) {
                status = STATUS_WHOLE;
            } else if (READ(sk, current, REQUEST_SOCKET) || READ(next, current, REQUEST_NEXT)) {
                status = STATUS_FAULT;
            } else {
                if (sk)
                    put(s, out, RECORD_SOCKET, 0, SOCKET_UNACCEPTED, sk);
                s->count++;
                s->current = next;
            }
        } else if (kind == KIND_TABLE) {
            if (current && !(current & 1)) { // in a chain; a nulls end marker is odd (include/linux/list_nulls.h)
                u64 next = 0;
                if (READ(next, current, 0)) {
                    s->first = 1; // a socket that was freed meanwhile: the rest of its chain is lost, not that of the table
                    s->current = 0;
                } else {
                    put(s, out, RECORD_SOCKET, 0, SOCKET_LISTED, current - item->node);
                    s->current = next;
                }
            } else if (s->count >= item->count) {
                status = s->first ? STATUS_FAULT : STATUS_WHOLE;
            } else if (item->stride == 8 && s->count + 8 <= item->count &&
                       !bpf_probe_read_kernel(x->buckets, 64, (void *)(item->head + (u64)s->count * 8)) &&
                       (!x->buckets[0] || (x->buckets[0] & 1)) && (!x->buckets[1] || (x->buckets[1] & 1)) &&
                       (!x->buckets[2] || (x->buckets[2] & 1)) && (!x->buckets[3] || (x->buckets[3] & 1)) &&
                       (!x->buckets[4] || (x->buckets[4] & 1)) && (!x->buckets[5] || (x->buckets[5] & 1)) &&
                       (!x->buckets[6] || (x->buckets[6] & 1)) && (!x->buckets[7] || (x->buckets[7] & 1))) {
                s->count += 8; // empty ones, by eights
            } else {
                if (READ(s->current, item->head, (u64)s->count * item->stride))
                    status = STATUS_FAULT;
                s->count++;
            }
        } else if (kind == KIND_NETS) {
            u64 next = 0, operations = 0;
            if (current == item->head) {
                put_tables(s, out, current - NET_LIST);
                status = STATUS_WHOLE;
            } else if (READ(next, current, 0)) {
                status = STATUS_FAULT;
            } else {
                READ(operations, current - NET_LIST, NET_OPERATIONS);
                if (operations == s->net_operations) // all but the list's own head
                    put_tables(s, out, current - NET_LIST);
                s->current = next;
                s->count++;
            }
        } else if (kind == KIND_PIPE) {
            if (visit_pipe_slot(x, s, out, item->head, &status))
                s->count++;
            else
                status = STATUS_WHOLE;
        } else if (kind == KIND_BLOCKS) {
            u64 pointer = 0;
            if (s->count >= item->count) {
                status = STATUS_WHOLE;
            } else if (READ(pointer, item->head, (u64)s->count * item->stride)) {
                status = STATUS_FAULT;
            } else {
                if (pointer && s->linear_to_page)
                    put_block(x, s, out, s->linear_to_page + (pointer >> PAGE_SHIFT) * PAGE_STRUCT_SIZE);
                s->count++;
            }
        } else if (s->phase == PHASE_DOWN) {
            u64 left = 0, parent = 0;
            if (READ(left, current, TREE_LEFT) || READ(parent, current, TREE_PARENT)) {
                status = STATUS_FAULT;
            } else if ((parent & ~3ULL) != s->previous) {
                status = STATUS_RACE;
            } else if (left) {
                s->previous = current;
                s->current = left;
            } else {
                s->phase = PHASE_VISIT;
            }
        } else if (s->phase == PHASE_RIGHT) {
            u64 right = 0;
            if (READ(right, current, TREE_RIGHT))
                status = STATUS_FAULT;
            s->phase = right ? PHASE_DOWN : PHASE_UP;
            if (right)
                s->current = right;
        } else if (s->phase == PHASE_UP) {
            u64 parent = 0, left = 0, right = 0;
            READ(parent, current, TREE_PARENT);
            parent &= ~3ULL;
            if (!parent) {
                status = STATUS_WHOLE;
            } else if (READ(left, parent, TREE_LEFT) || READ(right, parent, TREE_RIGHT)) {
                status = STATUS_FAULT;
            } else if (left != current && right != current) {
                status = STATUS_RACE;
            } else {
                s->current = parent;
                if (left == current)
                    s->phase = PHASE_VISIT;
            }
        } else if (s->phase == PHASE_LIST && !s->depth &&
                   (current == item->head || (kind == KIND_PACKET_CHAIN && !current))) {
            status = STATUS_WHOLE;
        } else if (!current) {
            status = STATUS_RACE;
        } else if (bpf_probe_read_kernel(x->packet, PACKET_SIZE, (void *)current)) {
            status = STATUS_FAULT;
        } else if (!s->depth && s->phase == PHASE_LIST && s->count >= limit_of(item)) {
            status = STATUS_RACE; // more than there are: some were taken meanwhile
        } else if (kind == KIND_PACKET_LIST && !s->depth && FIELD(u64, x->packet, PACKET_PREVIOUS) != s->previous) {
            status = STATUS_RACE; // taken from this queue, perhaps put on another
        } else {
            u64 list = visit(x, s, out, item->flags, item->consumed), next = FIELD(u64, x->packet, PACKET_NEXT);
            if (!s->depth) {
                s->count++;
                s->previous = current;
            }
            int in_tree = s->phase == PHASE_VISIT;
            s->phase = in_tree ? PHASE_RIGHT : PHASE_LIST;
            if (list && s->depth >= MAX_DEPTH) {
                status = STATUS_TOO_DEEP;
            } else if (list) {
                s->resume[s->depth & (MAX_DEPTH - 1)] = in_tree ? current : next;
                s->depth++;
                s->current = list;
                s->phase = PHASE_LIST;
            } else if (!in_tree) {
                s->current = next;
            }
        }
        if (++s->steps > MAX_STEPS)
            status = STATUS_TOO_LONG;
        if (status) {
            u32 expected = s->count;
            u64 first = s->first;
            if (kind == KIND_PACKET_LIST)
                READ(expected, item->head, QUEUE_LENGTH);
            if (kind <= KIND_ACCEPT)
                READ(first, item->head, 0);
            if (status == STATUS_WHOLE && (expected != s->count || first != s->first))
                status = STATUS_RACE;
            put(s, out, RECORD_END, 0, status, s->count | ((u64)expected << 32));
            s->fragments = 0; // else those of a packet that was nested too deep would count for the next item
            s->files = 0;
            s->item++;
            s->phase = PHASE_START;
        }
    }
    return 0;
}
