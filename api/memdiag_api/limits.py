"""Limits that the writer of a document observes and its reader checks. Both use these constants.

A list or a text that is longer is rejected as a whole, so if only one side had a limit, a run could lose its result.
All of them are part of the stored format: before raising one, release a reader that accepts the higher limit.
"""

# Characters of a string.
MAX_SHORT_TEXT = 256
MAX_SENTENCE = 1024

# The evidence document of one node and run.
MAX_DOCUMENT_BYTES = 256 * 1024
MAX_CHECKS = 8
MAX_NEEDS = 64
MAX_CLASSES = 64
MAX_STACKS = 64
MAX_FRAMES = 64
MAX_ORDERS = 16
MAX_SLICES = 64
MAX_PROCESSES = 16
"""Processes that allocated through one stack."""
MAX_JOINED = 16
"""Holders of one stack, stacks of one holder."""
MAX_SET_ASIDE = 32
MAX_OBJECT_CLASSES = 8
MAX_CHARGES = 32
MAX_HOLDERS = 256
MAX_OWNERS = 16
MAX_FDS = 64
MAX_QUEUES = 8
MAX_PEERS = 3
MAX_NOT_SEEN = 16
MAX_LEDGER_LINES = 64
MAX_CONTAINERS = 64
MAX_CENSUS_ORDERS = 32
MAX_CENSUS_SHARES = 32
MAX_SLAB_CACHES = 48
MAX_SLAB_CHARGES = 24
MAX_CHARGED_CACHES = 4
MAX_CLUES = 16
MAX_FRAME_USES = 16
MAX_CACHED_FILES = 32
MAX_FILE_USERS = 3
MAX_FILE_FDS = 4
MAX_CACHED_SEGMENTS = 16
MAX_FILE_SYSTEMS = 24
MAX_DENTRY_SHARES = 16
MAX_NAMESPACES = 32
MAX_NAMESPACE_DEVICES = 4
MAX_DEVICE_NAME = 16
MAX_PACKET_GROUPS = 48
MAX_REASONS = 16
MAX_NOTES = 32
MAX_FINDINGS = 64
MAX_FINDING_REFERENCES = 8
MAX_OWNER_FDS = 8
MAX_CLASS_OWNERS = 12
MAX_CONTAINER_ACCOUNTS = 64
MAX_CHARGED_FILES = 3
MAX_REMOVED_GROUP_SHARES = 8
MAX_OOM_KILLS = 16
MAX_OOM_CLASSES = 24
MAX_HUGE_PAGE_POOLS = 32
MAX_COMPRESSED_DEVICES = 8
MAX_VMALLOC_CALLERS = 24
MAX_ALLOCATION_SITES = 32
MAX_PAGE_OWNER_STACKS = 8
MAX_PAGE_OWNER_FRAMES = 16
MAX_FREE_ORDERS = 16
MAX_HUGE_PAGE_OWNERS = 8

# What is kept of a run for later ones (history).
MAX_HISTORY_RUNS = 10
MAX_HISTORY_BYTES = 24 * 1024
"""The history in the environment of a runner pod, as JSON text. An environment variable can have 128 KiB in Linux."""
MAX_SUMMARY_HOLDERS = 8
MAX_SUMMARY_CACHES = 12
MAX_SUMMARY_TEXT = 64

# A report: the document, and the names of the containers in it.
MAX_NAMED_CONTAINERS = 512

# The status of a diagnosis: the main findings of each document.
MAX_NODES = 1000
MAX_RESULTS = 16
MAX_TOP = 20
MAX_TOP_FINDINGS = 10
MAX_TOP_FRAMES = 32
MAX_TOP_PROCESSES = 8
MAX_TOP_HELD_BY = 8
MAX_TOP_FDS = 16
MAX_COVERAGE = 16
MAX_PREVIOUS_RUNS = 20
MAX_HANDLED_REQUESTS = 10
MAX_CONDITIONS = 16
