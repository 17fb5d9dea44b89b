// governor.bpf.h - keeps the cost of recording events within a budget, on each CPU.
//
// Only some kinds of events make the load. Those are thinned out: one in 2^level is recorded, at random. A kind that is
// rare beside them is recorded completely.
//
// Defines: GOVERNOR_BITS, MAX_LEVEL.

#define GOVERNOR_EVENTS 256 // between two reads of the clock

// One kind of events, or several with the same hash.
struct cell {
    u32 round;
    u16 count;
    u16 level;
};

struct governor {
    u64 since_ns, recorded, skipped, event_ns, round, random;
    u64 most, last_most; // events of the most frequent kind, in this round and in the last one
    u32 more, less;
    struct cell cells[1 << GOVERNOR_BITS];
};

static inline u32 log2_floor(u64 value)
{
    u32 bits = 0;
    if (value >> 32) {
        value >>= 32;
        bits += 32;
    }
    if (value >> 16) {
        value >>= 16;
        bits += 16;
    }
    if (value >> 8) {
        value >>= 8;
        bits += 8;
    }
    if (value >> 4) {
        value >>= 4;
        bits += 4;
    }
    if (value >> 2) {
        value >>= 2;
        bits += 2;
    }
    return bits + (value >> 1);
}

// Random bits at half the cost of bpf_get_prandom_u32(): the upper bits of a linear congruential generator.
static inline u32 random_bits(struct governor *governor)
{
    governor->random = governor->random * 6364136223846793005ULL + 1442695040888963407ULL;
    return governor->random >> 40;
}

// Compare the cost of this round's recorded events with the budget for its duration: thin out more, or less. A round of
// sparse recording has few recorded events, sometimes none by chance. So that says little: kinds are thinned less in
// single steps, and no longer at all only if the budget would have been enough for every event of the round.
static inline void govern(struct governor *governor, u32 budget_permille)
{
    u64 now = bpf_ktime_get_ns();
    u64 event = governor->event_ns * 1000 + 1, cost = governor->recorded * event;
    u64 allowed = (now - governor->since_ns) * budget_permille + 1;
    governor->more = cost > allowed ? 1 + log2_floor(cost / allowed) : 0;
    governor->less = allowed > 3 * cost;
    if (allowed > (governor->recorded + governor->skipped) * event)
        governor->less = MAX_LEVEL;
    governor->last_most = governor->most;
    governor->most = 0;
    governor->recorded = 0;
    governor->skipped = 0;
    governor->since_ns = now;
    governor->round++;
}

// How much a kind is thinned out. Only kinds that were at least an eighth as frequent as the most frequent one are
// thinned further.
static inline u32 level_of(struct governor *governor, struct cell *cell)
{
    if (cell->round != (u32)governor->round) {
        u32 level = cell->level;
        if (cell->count * 8 >= governor->last_most)
            level += governor->more;
        level = level > governor->less ? level - governor->less : 0;
        cell->level = level > MAX_LEVEL ? MAX_LEVEL : level;
        cell->count = 0;
        cell->round = governor->round;
    }
    return cell->level;
}

// Decide about an event of a kind: returns its level, or -1 if it is not to be recorded. A budget of 0 records all.
static inline s32 thinning(struct governor *governor, u32 budget_permille, u32 kind)
{
    if (!budget_permille)
        return 0;
    struct cell *cell = &governor->cells[kind * 0x9E3779B1U >> (32 - GOVERNOR_BITS)];
    u32 level = level_of(governor, cell);
    if (++cell->count > governor->most)
        governor->most = cell->count;
    if (level && random_bits(governor) & ((1 << level) - 1)) {
        if (++governor->skipped >= GOVERNOR_EVENTS)
            govern(governor, budget_permille);
        return -1;
    }
    if (++governor->recorded >= GOVERNOR_EVENTS)
        govern(governor, budget_permille);
    return level;
}

// Whether to measure the time that recording this event takes, for `measured`: the first one of a round, and some more.
static inline int is_measured(struct governor *governor)
{
    return (governor->recorded & 31) == 1;
}

static inline void measured(struct governor *governor, u64 start_ns)
{
    governor->event_ns = (7 * governor->event_ns + bpf_ktime_get_ns() - start_ns) >> 3;
}
