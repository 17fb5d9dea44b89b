// walker.bpf.c - walk kernel lists of packets and pages to their last page.
//
// User space runs `walk` repeatedly (BPF_PROG_RUN). Each run advances one cursor by STEPS steps along a worklist; a step
// does a bounded amount of work (one packet, one node of a tree, one bucket). So a queue of any length is walked to its
// end, although no program may loop that long.
//
//   work      the items to walk. Written by user space.
//   cursor    the state of the walk: reset by user space, advanced here.
//   outputs   the records of the results. Written here from cursor.position on; user space reads them, and resets the
//             position.
//   scratch   working memory: too large for the stack.
//
// Nothing is locked. Every read may fault, every pointer may be stale. So back links, parents and lengths are checked,
// and at the end, that the item's first entry is still the same: it is not if a queue was read from meanwhile. If a
// check fails, the walk ends with STATUS_RACE, and user space walks the item again. Every item ends in one END record.
//
// Defines from walker.py: offsets and sizes in bytes from BTF, PG_HEAD (enumerator), PAGE_SHIFT, STEPS, MAX_STEPS of
// one item, WORK and RECORDS in entries, MAX_FRAGMENTS per packet, and the constants in items and records: KIND_, ITEM_,
// RECORD_, TABLE_, SOCKET_, STATUS_.

#include "common.bpf.h"

struct item {
    u64 head;
    u32 count; // number of buckets, pointers or entries; for a packet chain the maximum length
    u16 stride;
    u16 node;
    u8 kind;
    u8 flags;
    u8 order;
    u8 consumed; // offset in a packet's control block of the bytes already read; 0: packets are read whole
    u8 unused[4];
};

#define CONTROL_MASK 63 // larger than any offset in the 48 bytes of a control block

struct record {
    u64 value;
    u32 item;
    u8 type;
    u8 flags;
    // NET: the table; PACKET: size of a head from slab, in HEAD_UNIT_BYTES; FRAGMENT, HEAD: order; SOCKET: how;
    // END: status
    u16 detail;
};

#define MAX_DEPTH 4 // of frag lists inside frag lists

enum { PHASE_START, PHASE_LIST, PHASE_DOWN, PHASE_VISIT, PHASE_RIGHT, PHASE_UP };

struct cursor {
    u64 current, previous, last_page, files;
    u64 first;             // what the item's head pointed to when the walk started; of a table whether a chain was lost
    u64 resume[MAX_DEPTH]; // where the walk continues after each open frag list
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

// The verifier follows both sides of every branch, for every fragment of every step, and from Linux 6.18 on both values
// of an arithmetic mask too. So the code that runs for each fragment computes with 0 and 1 instead: IS_SET(v) is 1 if v
// is not 0, IS_LESS(a, b) is 1 if a < b, for signed numbers that are not huge.
static inline u64 opaque(u64 value)
{
    AS_WRITTEN(value); // otherwise the compiler sees that it is 0 or 1, and branches on it
    return value;
}
#define IS_SET(value) opaque(((value) | -(value)) >> 63)
#define IS_LESS(left, right) opaque(((u64)(left) - (u64)(right)) >> 63)

// From any page of a block to its head: returns it, leaves order and flags in scratch; 0 if it can't be read.
// A tail points to its head (compound_head), or, if the size of struct page is a power of two, has a mask to compute it
// (compound_info, Linux 7.1); a mask has all high bits set, which no address of the page array has.
static inline u64 block_of(struct scratch *scratch, u64 page)
{
    u64 info = 0, head, readable;
    READ(info, page, PAGE_COMPOUND);
    head = info - 1;
#ifdef COMPOUND_MAY_BE_MASK
    head += ((page & info) - head) * (1 - IS_SET((info >> 30) ^ (~0ULL >> 30)));
#endif
    page += (head - page) * opaque(info & 1);
    readable =
        1 - IS_SET((u64)bpf_probe_read_kernel(scratch->page, PAGE_READ_BYTES, (void *)page)); // else it leaves zeroes
    scratch->order =
        (FIELD(u8, scratch->page, PAGE_ORDER) & 31) * opaque(FIELD(u64, scratch->page, PAGE_FLAGS) >> PG_HEAD & 1);
    scratch->page_flags =
        IS_SET(FIELD(u64, scratch->page, PAGE_MAPPING)) * RECORD_IS_USER + (1 - readable) * RECORD_UNREADABLE;
    return page * readable;
}

static inline void put(struct cursor *cur, struct output *out, u8 type, u8 flags, u16 detail, u64 value)
{
    // A run stops STEP_RECORDS before the end; the mask is for the verifier.
    struct record *record = &out->records[cur->position & (RECORDS - 1)];
    record->value = value;
    record->item = cur->item;
    record->type = type;
    record->flags = flags;
    record->detail = detail;
    cur->position++;
}

// Keep the last record only if `keep` is 1, not 0.
static inline void keep_if(struct cursor *cur, u64 keep)
{
    cur->position -= 1 - keep;
}

// The block that a fragment is in; adjacent fragments often share one, which is recorded once. Device memory (net_iov)
// has the low bit set (include/net/netmem.h) and no page.
static inline void put_block(struct scratch *scratch, struct cursor *cur, struct output *out, u64 memory)
{
    u64 is_page = opaque(1 - (memory & 1)), block = block_of(scratch, memory * is_page) * is_page;
    put(cur, out, RECORD_FRAGMENT, (1 - is_page) * RECORD_IS_DEVICE + scratch->page_flags * is_page, scratch->order,
        block);
    keep_if(cur, 1 - (1 - IS_SET(block ^ cur->last_page)) * IS_SET(block));
    cur->last_page = block;
}

// A head with pages of its own instead of a slab object: cut from a page fragment, or too large for any slab
// (mm/slab_common.c: beyond two pages kmalloc takes a compound page). Returns 1 for such a head, else 0. A page that
// can't be read or is too small means that the head is not in the linear map: netlink's may be vmalloc.
static inline u64 put_head(struct scratch *scratch, struct cursor *cur, struct output *out, u64 head, u64 bytes)
{
    u64 is_cut = IS_SET((u64)(FIELD(u8, scratch->packet, PACKET_HEAD_FRAG_BYTE) & PACKET_HEAD_FRAG_MASK));
    u64 is_own = IS_SET(is_cut + IS_LESS(2ULL << PAGE_SHIFT, bytes)) * IS_SET(cur->linear_to_page);
    u64 page = block_of(scratch, (cur->linear_to_page + (head >> PAGE_SHIFT) * STRUCT_PAGE_BYTES) * is_own);
    is_own *= IS_SET(page) * (1 - IS_LESS(1ULL << (scratch->order + PAGE_SHIFT), bytes));
    put(cur, out, RECORD_HEAD, scratch->page_flags + (1 - is_cut) * RECORD_IS_SLAB, scratch->order, page);
    keep_if(cur, is_own * IS_SET(page ^ cur->last_page));
    cur->last_page += (page - cur->last_page) * is_own;
    return is_own;
}

// One packet: its size, its head, its payload. Its fragments and files are left to the next steps, so that the verifier
// follows those loops once. Returns its frag list, NULL if it has none.
static inline u64 visit(struct scratch *scratch, struct cursor *cur, struct output *out, u64 item_flags, u64 consumed)
{
    u64 head = FIELD(u64, scratch->packet, PACKET_HEAD), end = FIELD(u32, scratch->packet, PACKET_END),
        bytes = end + SHARED_SIZE;
    u64 unreadable = IS_SET((u64)bpf_probe_read_kernel(scratch->shared, SHARED_SIZE, (void *)(head + end)));
    u64 is_unix = opaque(item_flags & ITEM_UNIX), is_member = IS_SET((u64)cur->depth), is_own;
    u64 length = FIELD(u32, scratch->packet, PACKET_LENGTH);
    length -=
        FIELD(u32, scratch->packet, PACKET_CONTROL + (consumed & CONTROL_MASK)) * IS_SET(consumed) * (1 - is_member);
    put(cur, out, RECORD_IDENTITY, 0, cur->count, cur->current ^ (length << 32));
    keep_if(cur, IS_LESS(cur->count, IDENTITIES) * (1 - is_member));
    put(cur, out, RECORD_SOCKET, 0, SOCKET_UNACCEPTED, FIELD(u64, scratch->packet, PACKET_SOCKET));
    // A packet that was taken and reused meanwhile has no socket yet.
    keep_if(cur, opaque(item_flags & ITEM_EMBRYOS) / ITEM_EMBRYOS * IS_SET(FIELD(u64, scratch->packet, PACKET_SOCKET)));
    is_own = put_head(scratch, cur, out, head, bytes);
    put(cur, out, RECORD_PACKET, is_member * RECORD_IS_MEMBER + unreadable * RECORD_UNREADABLE,
        bytes / HEAD_UNIT_BYTES * (1 - is_own), (length << 32) | FIELD(u32, scratch->packet, PACKET_TRUESIZE));
    cur->fragments = FIELD(u8, scratch->shared, SHARED_FRAGMENT_COUNT); // a failed read leaves zeroes
    cur->files =
        FIELD(u64, scratch->packet, PACKET_CONTROL + UNIX_FILES) * is_unix * IS_SET(cur->socket_file_operations);
    cur->file = 0;
    return FIELD(u64, scratch->shared, SHARED_FRAGMENT_LIST);
}

// The fragments of the last visited packet.
static inline void visit_fragments(struct scratch *scratch, struct cursor *cur, struct output *out)
{
    u32 fragments = cur->fragments;
    cur->fragments = 0;
    NO_UNROLL
    for (u32 i = 0; i < MAX_FRAGMENTS; i++) {
        AS_WRITTEN(i);
        if (i >= fragments || i >= MAX_FRAGMENTS)
            break;
        u64 memory = FIELD(u64, scratch->shared, SHARED_FRAGMENTS + i * FRAGMENT_SIZE);
        put_block(scratch, cur, out, memory);
    }
}

// SCM_RIGHTS: the next of the files that are in flight with the last visited packet (include/net/scm.h).
static inline void visit_file(struct cursor *cur, struct output *out)
{
    u16 files = 0;
    u64 file = 0, operations = 0, socket = 0, sk = 0, at = cur->file;
    READ(files, cur->files, SCM_COUNT);
    READ(file, cur->files, SCM_FILES + at * 8);
    cur->file = at + 1;
    if (at >= files || at >= SCM_MAX_FILES) {
        cur->files = 0;
        return;
    }
    READ(operations, file, FILE_OPERATIONS);
    if (operations != cur->socket_file_operations)
        return;
    READ(socket, file, FILE_PRIVATE);
    READ(sk, socket, SOCKET_SK);
    if (sk)
        put(cur, out, RECORD_SOCKET, 0, SOCKET_IN_FLIGHT, sk);
}

// The tables of sockets in a network namespace: the address of each hash table, then the number of its buckets.
static inline void put_tables(struct cursor *cur, struct output *out, u64 net)
{
#ifdef HAS_TABLES
    u64 address = 0, hash = 0;
    u32 mask = 0;
    READ(address, net, NET_UNIX_BUCKETS);
    put(cur, out, RECORD_NET, 0, TABLE_UNIX, address);
    put(cur, out, RECORD_NET, 0, TABLE_UNIX, UNIX_BUCKETS);
    READ(hash, net, NET_TCP_HASH);
    READ(address, hash, TCP_HASH_BUCKETS);
    READ(mask, hash, TCP_HASH_MASK);
    put(cur, out, RECORD_NET, 0, TABLE_TCP, address);
    put(cur, out, RECORD_NET, 0, TABLE_TCP, (u64)mask + 1);
    READ(hash, net, NET_UDP_TABLE);
    READ(address, hash, UDP_TABLE_SLOTS);
    READ(mask, hash, UDP_TABLE_MASK);
    put(cur, out, RECORD_NET, 0, TABLE_UDP, address);
    put(cur, out, RECORD_NET, 0, TABLE_UDP, (u64)mask + 1);
    put(cur, out, RECORD_NET, 0, TABLE_PACKET, net + NET_PACKET_LIST);
    put(cur, out, RECORD_NET, 0, TABLE_PACKET, 1);
#endif
}

// The next buffer of a pipe, from its tail to its head, then the pages that it keeps for the next write
// (include/linux/pipe_fs_i.h).
static inline u16 step_pipe(struct scratch *scratch, struct cursor *cur, struct output *out, u64 pipe)
{
    u64 buffers = 0, page = 0;
    u32 head = 0, tail = 0, slots = 0, length = 0, at = cur->count, used;
    READ(head, pipe, PIPE_HEAD);
    READ(tail, pipe, PIPE_TAIL);
    READ(slots, pipe, PIPE_SLOTS);
    READ(buffers, pipe, PIPE_BUFFERS);
    used = head - tail;
    if (!at)
        cur->first = tail;
    if (cur->first != tail) {
        cur->count++;
        return STATUS_RACE; // it was read meanwhile: the remaining slots are counted from another one
    }
    if (at < used && at < slots) {
        buffers += (u64)((tail + at) & (slots - 1)) * PIPE_BUFFER_SIZE;
        READ(page, buffers, PIPE_BUFFER_PAGE);
        READ(length, buffers, PIPE_BUFFER_LENGTH);
        put(cur, out, RECORD_PACKET, 0, 0, (u64)length << 32);
    } else {
        at -= used;
        if (at >= PIPE_KEPT_PAGES)
            return STATUS_WHOLE;
        READ(page, pipe, PIPE_KEPT + (u64)at * 8);
    }
    if (page)
        put_block(scratch, cur, out, page);
    cur->count++;
    return 0;
}

// The maximum number of packets in the item's list or chain.
static inline u32 limit_of(struct item *item)
{
    u32 limit = item->count;
    if (item->kind == KIND_PACKET_LIST)
        READ(limit, item->head, QUEUE_LENGTH);
    return limit;
}

// What the last visited packet left to do: its fragments, its files, the end of the frag list that it was in.
// Returns 1 if that was this step, else 0.
static inline int finish_packet(struct scratch *scratch, struct cursor *cur, struct output *out)
{
    if (cur->fragments) {
        visit_fragments(scratch, cur, out);
    } else if (cur->files) {
        visit_file(cur, out);
    } else if (cur->depth && !cur->current) { // continue after the frag list's head
        cur->depth--;
        cur->current = cur->resume[cur->depth & (MAX_DEPTH - 1)];
        if (!cur->depth && cur->in_tree)
            cur->phase = PHASE_RIGHT;
    } else {
        return 0;
    }
    return 1;
}

// Each step below does a bounded part of an item's walk. It returns 0 to continue, or the status that ends the walk.

static inline u16 start_item(struct cursor *cur, struct item *item)
{
    u8 kind = item->kind;
    u16 status = 0;
    cur->count = 0;
    cur->depth = 0;
    cur->steps = 0;
    cur->last_page = 0;
    cur->previous = item->head;
    cur->current = 0;
    cur->phase = PHASE_LIST;
    cur->in_tree = kind == KIND_PACKET_TREE;
    if (cur->in_tree)
        cur->phase = PHASE_DOWN;
    if (kind != KIND_TABLE && kind != KIND_BLOCKS && kind != KIND_PIPE && kind != KIND_PACKET_ARRAY) {
        if (READ(cur->current, item->head, 0))
            status = STATUS_FAULT;
        else if (!cur->current && kind != KIND_PACKET_LIST && kind != KIND_NETS)
            status = STATUS_WHOLE;
    }
    cur->first = cur->current;
    if (cur->in_tree)
        cur->previous = 0;
    return status;
}

// The next connection that has not been accepted yet.
static inline u16 step_accept(struct cursor *cur, struct output *out)
{
    u64 sk = 0, next = 0;
    if (!cur->current)
        return STATUS_WHOLE;
    if (READ(sk, cur->current, REQUEST_SOCKET) || READ(next, cur->current, REQUEST_NEXT))
        return STATUS_FAULT;
    if (sk)
        put(cur, out, RECORD_SOCKET, 0, SOCKET_UNACCEPTED, sk);
    cur->count++;
    cur->current = next;
    return 0;
}

#define IS_EMPTY(bucket) (!(bucket) || ((bucket) & 1)) // a nulls end marker is odd (include/linux/list_nulls.h)

// Whether the next eight buckets of a table can be read and are all empty.
static inline int is_empty_run(struct scratch *scratch, struct cursor *cur, struct item *item)
{
    u64 *buckets = scratch->buckets;
    return item->stride == 8 && cur->count + 8 <= item->count &&
           !bpf_probe_read_kernel(buckets, 64, (void *)(item->head + (u64)cur->count * 8)) && IS_EMPTY(buckets[0]) &&
           IS_EMPTY(buckets[1]) && IS_EMPTY(buckets[2]) && IS_EMPTY(buckets[3]) && IS_EMPTY(buckets[4]) &&
           IS_EMPTY(buckets[5]) && IS_EMPTY(buckets[6]) && IS_EMPTY(buckets[7]);
}

// The next socket in the chain of a bucket, or the next bucket.
static inline u16 step_table(struct scratch *scratch, struct cursor *cur, struct output *out, struct item *item)
{
    u64 current = cur->current, next = 0;
    u16 status = 0;
    if (!IS_EMPTY(current)) {
        if (READ(next, current, 0)) {
            cur->first = 1; // a socket that was freed meanwhile: the rest of its chain is lost, not that of the table
            cur->current = 0;
        } else {
            put(cur, out, RECORD_SOCKET, 0, SOCKET_LISTED, current - item->node);
            cur->current = next;
        }
        return 0;
    }
    if (cur->count >= item->count)
        return cur->first ? STATUS_FAULT : STATUS_WHOLE;
    if (is_empty_run(scratch, cur, item)) {
        cur->count += 8;
        return 0;
    }
    if (READ(cur->current, item->head, (u64)cur->count * item->stride))
        status = STATUS_FAULT;
    cur->count++;
    return status;
}

// The next network namespace.
static inline u16 step_nets(struct cursor *cur, struct output *out, struct item *item)
{
    u64 current = cur->current, next = 0, operations = 0;
    if (current == item->head) {
        put_tables(cur, out, current - NET_LIST);
        return STATUS_WHOLE;
    }
    if (READ(next, current, 0))
        return STATUS_FAULT;
    READ(operations, current - NET_LIST, NET_OPERATIONS);
    if (operations == cur->net_operations) // all but the list's own head
        put_tables(cur, out, current - NET_LIST);
    cur->current = next;
    cur->count++;
    return 0;
}

// The next pointer to a block, or to a struct page (ITEM_PAGES), or of an array of packets. The latter leaves a packet to
// the next steps; a pointer with the low bit set is that of an XDP frame, whose memory is in the same page
// (include/linux/if_tun.h, TUN_XDP_FLAG).
static inline u16 step_pointers(struct scratch *scratch, struct cursor *cur, struct output *out, struct item *item)
{
    u64 pointer = 0, page;
    if (cur->count >= item->count)
        return STATUS_WHOLE;
    if (READ(pointer, item->head, (u64)cur->count * item->stride))
        return STATUS_FAULT;
    if (item->kind == KIND_PACKET_ARRAY && pointer && !(pointer & 1)) {
        cur->current = pointer;
        return 0;
    }
    page = item->flags & ITEM_PAGES ? pointer : cur->linear_to_page + (pointer >> PAGE_SHIFT) * STRUCT_PAGE_BYTES;
    if (pointer && (cur->linear_to_page || item->flags & ITEM_PAGES))
        put_block(scratch, cur, out, page);
    cur->count++;
    return 0;
}

// The next entry of a list whose entries have, `node` bytes from their link, a pointer to a block. The two lowest bits of
// a link are flags (kernel/trace/ring_buffer.c).
static inline u16 step_linked(struct scratch *scratch, struct cursor *cur, struct output *out, struct item *item)
{
    u64 current = cur->current & ~3ULL, pointer = 0;
    if (cur->count >= item->count)
        return STATUS_WHOLE;
    if (!current || READ(cur->current, current, 0))
        return STATUS_FAULT;
    READ(pointer, current, item->node);
    if (pointer && cur->linear_to_page)
        put_block(scratch, cur, out, cur->linear_to_page + (pointer >> PAGE_SHIFT) * STRUCT_PAGE_BYTES);
    cur->count++;
    return 0;
}

// In a tree: down to the left, as far as possible.
static inline u16 step_down(struct cursor *cur)
{
    u64 left = 0, parent = 0;
    if (READ(left, cur->current, TREE_LEFT) || READ(parent, cur->current, TREE_PARENT))
        return STATUS_FAULT;
    if ((parent & ~3ULL) != cur->previous)
        return STATUS_RACE;
    if (left) {
        cur->previous = cur->current;
        cur->current = left;
    } else {
        cur->phase = PHASE_VISIT;
    }
    return 0;
}

// ... then, after a visit, right once.
static inline u16 step_right(struct cursor *cur)
{
    u64 right = 0;
    u16 status = 0;
    if (READ(right, cur->current, TREE_RIGHT))
        status = STATUS_FAULT;
    cur->phase = right ? PHASE_DOWN : PHASE_UP;
    if (right)
        cur->current = right;
    return status;
}

// ... and up again if there is nothing to the right.
static inline u16 step_up(struct cursor *cur)
{
    u64 parent = 0, left = 0, right = 0;
    READ(parent, cur->current, TREE_PARENT);
    parent &= ~3ULL;
    if (!parent)
        return STATUS_WHOLE;
    if (READ(left, parent, TREE_LEFT) || READ(right, parent, TREE_RIGHT))
        return STATUS_FAULT;
    if (left != cur->current && right != cur->current)
        return STATUS_RACE;
    if (left == cur->current)
        cur->phase = PHASE_VISIT;
    cur->current = parent;
    return 0;
}

// Read the packet at the cursor, in a list, a chain, a tree or a frag list.
static inline u16 read_packet(struct scratch *scratch, struct cursor *cur, struct item *item)
{
    u64 current = cur->current;
    u32 in_list = !cur->depth && cur->phase == PHASE_LIST;
    if (in_list && (current == item->head || (item->kind == KIND_PACKET_CHAIN && !current)))
        return STATUS_WHOLE;
    if (!current)
        return STATUS_RACE;
    if (bpf_probe_read_kernel(scratch->packet, PACKET_SIZE, (void *)current))
        return STATUS_FAULT;
    if (in_list && cur->count >= limit_of(item))
        return STATUS_RACE; // more than the queue has: some were taken meanwhile
    if (item->kind == KIND_PACKET_LIST && !cur->depth && FIELD(u64, scratch->packet, PACKET_PREVIOUS) != cur->previous)
        return STATUS_RACE; // taken from this queue, perhaps added to another
    return 0;
}

// The next packet.
static inline u16 step_packet(struct scratch *scratch, struct cursor *cur, struct output *out, struct item *item)
{
    u64 current = cur->current, list, next;
    u16 status = read_packet(scratch, cur, item);
    if (status)
        return status;
    list = visit(scratch, cur, out, item->flags, item->consumed);
    next = FIELD(u64, scratch->packet, PACKET_NEXT);
    if (item->kind == KIND_PACKET_ARRAY && !cur->depth)
        next = 0; // the array has the next one
    if (!cur->depth) {
        cur->count++;
        cur->previous = current;
    }
    int in_tree = cur->phase == PHASE_VISIT;
    cur->phase = in_tree ? PHASE_RIGHT : PHASE_LIST;
    if (list && cur->depth >= MAX_DEPTH)
        return STATUS_TOO_DEEP;
    if (list) {
        cur->resume[cur->depth & (MAX_DEPTH - 1)] = in_tree ? current : next;
        cur->depth++;
        cur->current = list;
        cur->phase = PHASE_LIST;
    } else if (!in_tree) {
        cur->current = next;
    }
    return 0;
}

static inline u16 step_item(struct scratch *scratch, struct cursor *cur, struct output *out, struct item *item)
{
    u8 kind = item->kind;
    if (cur->phase == PHASE_START)
        return start_item(cur, item);
    if (kind == KIND_ACCEPT)
        return step_accept(cur, out);
    if (kind == KIND_TABLE)
        return step_table(scratch, cur, out, item);
    if (kind == KIND_NETS)
        return step_nets(cur, out, item);
    if (kind == KIND_PIPE)
        return step_pipe(scratch, cur, out, item->head);
    if (kind == KIND_LINKED)
        return step_linked(scratch, cur, out, item);
    if (kind == KIND_BLOCKS || (kind == KIND_PACKET_ARRAY && !cur->current && !cur->depth))
        return step_pointers(scratch, cur, out, item);
    if (cur->phase == PHASE_DOWN)
        return step_down(cur);
    if (cur->phase == PHASE_RIGHT)
        return step_right(cur);
    if (cur->phase == PHASE_UP)
        return step_up(cur);
    return step_packet(scratch, cur, out, item);
}

// Record how the walk of an item ended; an item that has changed since its walk started is not complete.
static inline void end_item(struct cursor *cur, struct output *out, struct item *item, u16 status)
{
    u32 expected = cur->count;
    u64 first = cur->first;
    if (item->kind == KIND_PACKET_LIST)
        READ(expected, item->head, QUEUE_LENGTH);
    if (item->kind <= KIND_ACCEPT)
        READ(first, item->head, 0);
    if (status == STATUS_WHOLE && (expected != cur->count || first != cur->first))
        status = STATUS_RACE;
    put(cur, out, RECORD_END, 0, status, cur->count | ((u64)expected << 32));
    cur->fragments = 0; // otherwise those of a packet that was nested too deeply would count for the next item
    cur->files = 0;
    cur->item++;
    cur->phase = PHASE_START;
}

int walk(void *ctx)
{
    u32 zero = 0;
    struct cursor *cur = cursors.lookup(&zero);
    struct scratch *scratch = scratches.lookup(&zero);
    struct output *out = outputs.lookup(&zero);
    if (!cur || !scratch || !out)
        return 0;
    NO_UNROLL
    for (int step = 0; step < STEPS; step++) {
        if (cur->position > RECORDS - STEP_RECORDS)
            break; // no room for a step: user space reads the records first
        if (finish_packet(scratch, cur, out))
            continue;
        u32 at = cur->item;
        struct item *item = work.lookup(&at);
        if (at >= cur->items || !item) {
            cur->done = 1;
            break;
        }
        u16 status = step_item(scratch, cur, out, item);
        if (++cur->steps > MAX_STEPS)
            status = STATUS_TOO_LONG;
        if (status)
            end_item(cur, out, item, status);
    }
    return 0;
}
