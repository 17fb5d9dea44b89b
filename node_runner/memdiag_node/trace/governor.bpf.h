// governor.bpf.h - keeps the cost of recording events within a budget, on each CPU.
//
// Only some kinds of events make the load. Those are thinned out: one in 2^level is recorded, at random. The kinds of
// which most are recorded are thinned out further, until they share the budget. A kind that is rare beside the most
// frequent one is recorded completely.
//
// Defines: GOVERNOR_BITS, MAX_LEVEL.

// A round ends after so many events, or so much time.
#define GOVERNOR_EVENTS 256
#define GOVERNOR_NS 50000000ULL
// The budget of so much time can be saved.
#define SAVED_NS 250000000ULL
// `use` is a mean of about so many rounds, and has this value if all of the budget is used.
#define USE_ROUNDS 8
#define BUDGET 4096ULL
// The cost of the first event of all is at most this.
#define FIRST_EVENT_NS 20000ULL
// A kind is rare if it has fewer events than one in so many of the most frequent kind.
#define RARE 48

// One kind of events, or several with the same hash.
struct cell {
    u32 round;
    u16 count;
    u16 level;
};

struct governor {
    u64 since_ns, recorded, skipped, event_ns, round, random;
    u64 saved;                             // of the budget, in ns * permille
    u64 use;                               // how much of the budget was used in recent rounds
    u32 most, last_most;                   // events of the most frequent kind, in this round and in the last one
    u64 most_recorded, last_most_recorded; // recorded_events() of the kind that has most, likewise
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

// Compare the cost of recorded events with the budget for the time: thin out more, or less. What was saved in the last
// moments may be spent: a short burst is recorded completely. A round of sparse recording has few recorded events, often
// none, so that its own cost says little. So the mean of the last rounds counts, which is assumed to change with the
// level, and less is thinned out only once much was saved. Nothing is thinned out any longer only if the budget would
// have been enough for every event of the round.
static inline void govern(struct governor *governor, u32 budget_permille)
{
    u64 now = bpf_ktime_get_ns();
    u64 event = governor->event_ns * 1000 + 1, cost = governor->recorded * event;
    u64 allowed = (now - governor->since_ns) * budget_permille + 1, most_saved = SAVED_NS * budget_permille;
    u64 available = allowed + governor->saved, saved = available > cost ? available - cost : 0;
    u64 use = governor->use - governor->use / USE_ROUNDS + cost * BUDGET / allowed / USE_ROUNDS;
    governor->more = !saved && use > BUDGET ? 1 + log2_floor(use / BUDGET) : 0;
    governor->less = saved > most_saved / 2 && use < BUDGET / 3;
    governor->use = governor->more ? use >> governor->more : use << governor->less;
    if (allowed > (governor->recorded + governor->skipped) * event)
        governor->less = MAX_LEVEL;
    governor->saved = saved < most_saved ? saved : most_saved;
    governor->last_most = governor->most;
    governor->last_most_recorded = governor->most_recorded;
    governor->most = 0;
    governor->most_recorded = 0;
    governor->recorded = 0;
    governor->skipped = 0;
    governor->since_ns = now;
    governor->round++;
}

// End the round after enough events or time, or once its time is enough to record all of it after all: the first moment
// after a storm must not be thinned like the storm.
static inline void govern_if_due(struct governor *governor, u32 budget_permille)
{
    u64 recorded = governor->recorded, skipped = governor->skipped;
    int due = recorded >= GOVERNOR_EVENTS || skipped >= GOVERNOR_EVENTS;
    if (!due && !(recorded + skipped & 15)) {
        u64 round_ns = bpf_ktime_get_ns() - governor->since_ns;
        due = round_ns > GOVERNOR_NS ||
              (skipped && round_ns * budget_permille > (recorded + skipped) * (governor->event_ns * 1000 + 1));
    }
    if (due)
        govern(governor, budget_permille);
}

// How many events of a kind are recorded in a round, on average, in 1 / 2^MAX_LEVEL.
static inline u64 recorded_events(struct cell *cell)
{
    return (u64)cell->count << (MAX_LEVEL - (cell->level & 15));
}

// Whether a kind, by its last round, is one of those to thin out further: it is not rare, and about as many of it are
// recorded as of the one with most. A kind that had no event for some rounds since is as much rarer.
static inline int is_load(struct governor *governor, struct cell *cell)
{
    u64 rounds = (u32)governor->round - cell->round;
    return cell->count * RARE >= governor->last_most * rounds &&
           recorded_events(cell) * 3 >= governor->last_most_recorded * 2 * rounds;
}

// How much a kind is thinned out.
static inline u32 level_of(struct governor *governor, struct cell *cell)
{
    if (cell->round != (u32)governor->round) {
        u32 level = cell->level;
        if (is_load(governor, cell))
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
    u64 recorded_of_kind = recorded_events(cell);
    if (recorded_of_kind > governor->most_recorded)
        governor->most_recorded = recorded_of_kind;
    if (level && random_bits(governor) & ((1 << level) - 1)) {
        governor->skipped++;
        govern_if_due(governor, budget_permille);
        return -1;
    }
    governor->recorded++;
    govern_if_due(governor, budget_permille);
    return level;
}

// Whether to measure the time that recording this event takes, for `measured`: the first one of a round, and some more.
static inline int is_measured(struct governor *governor)
{
    return (governor->recorded & 31) == 1;
}

// A virtual CPU may be stopped for milliseconds, which is not the cost of an event: a single measurement counts as four
// usual events at most.
static inline void measured(struct governor *governor, u64 start_ns)
{
    u64 usual_ns = governor->event_ns, event_ns = bpf_ktime_get_ns() - start_ns;
    u64 most_ns = usual_ns ? 4 * usual_ns : FIRST_EVENT_NS;
    event_ns = event_ns < most_ns ? event_ns : most_ns;
    governor->event_ns = usual_ns ? (7 * usual_ns + event_ns) >> 3 : event_ns;
}
