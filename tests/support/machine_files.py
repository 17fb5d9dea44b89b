"""Files that show memory of the machine, as kernels write them that have what this machine may lack."""

BUDDYINFO = (
    b"Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      3 \n"
    b"Node 0, zone    DMA32      2      2      4      2      5      4      3      3      4      2    752 \n"
    b"Node 0, zone   Normal   6143  20977  11465   8395   3860   1000    256    621    253    164     88 \n"
)
MM_STAT = b" 314572800 309104371 314998784        0 314998784     1024        3    52101        0\n"
SWAPS = (
    b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    b"/dev/zram0                              partition\t4194300\t\t1048576\t\t100\n"
    b"/swap\\040file                           file\t\t2097148\t\t0\t\t-2\n"
)
ALLOCINFO = (
    b"allocinfo - version: 1.0\n"
    b"#     <size>  <calls> <tag info>\n"
    b"           0        0 init/main.c:1314 func:do_initcalls \n"
    b"   419430400   102400 drivers/net/leaky/rx.c:88 [leaky] func:leaky_rx_alloc \n"
    b"   209715200    51200 mm/slub.c:3062 func:alloc_slab_page \n"
    b"    62914560    15360 mm/filemap.c:1026 func:__filemap_get_folio_mpol \n"
    b"     4194304      256 kernel/fork.c:311 func:alloc_thread_stack_node \n"
    b"      -16384       -4 arch/x86/mm/pgtable.c:24 func:pte_alloc_one \n"
)
ALLOCINFO_2 = (
    b"allocinfo - version: 2.0\n"
    b"#     <size>  <calls> <tag info>\n"
    b"       40960       10 fs/xfs/xfs_super.c:70 [xfs] func:xfs_init accurate:no \n"
)
PAGE_OWNER = (
    b" get_page_from_freelist+0x7e6/0x2140\n"
    b" __alloc_pages+0x18a/0x370\n"
    b" leaky_rx_alloc+0x1c/0x80 [leaky]\n"
    b"nr_base_pages: 102400\n"
    b"\n"
    b" get_page_from_freelist+0x7e6/0x2140\n"
    b" pte_alloc_one+0x14/0x70\n"
    b"nr_base_pages: 512\n"
    b"\n"
)
IOMEM = (
    b"00001000-0009fbff : System RAM\n"
    b"00100000-bfffffff : System RAM\n"
    b"  01000000-022090c7 : Kernel code\n"
    b"  02400000-02e08fff : Kernel rodata\n"
    b"  2b000000-3affffff : Crash kernel\n"
    b"c0001000-eebfffff : PCI Bus 0000:00\n"
    b"100000000-63fffffff : System RAM\n"
)
ZONES = (
    b"Node 0, zone      DMA\n        spanned  4095\n        present  3998\n        managed  3840\n"
    b"Node 0, zone   Normal\n        spanned  262144\n        present  258016\n        managed  245002\n"
    b"Node 0, zone   Device\n        present  9999\n        managed  0\n"
)
VMALLOCINFO = (
    b"0xffffc90000000000-0xffffc90000005000   20480 kernel_clone+0x94/0x3e0 pages=4 vmalloc N0=4\n"
    b"0xffffc90000010000-0xffffc90019010000 419434496 leaky_open+0x2a/0x90 [leaky] pages=102400 vmalloc vpages\n"
    b"0xffffc90020000000-0xffffc90020011000   69632 leaky_open.isra.0+0x2a/0x90 [leaky] pages=16 vmalloc N0=16\n"
    b"0xffffc90030000000-0xffffc90036401000 104861696 array_map_alloc+0x11d/0x1c0 pages=25600 vmalloc user N0=25600\n"
    b"0xffffc90040000000-0xffffc90040003000   12288 acpi_os_map_iomem+0x1bc/0x1e0 phys=0x7fe0000 ioremap\n"
    b"0xffffc90050000000-0xffffc90050003000   12288 ring_buffer_map+0x1/0x2 pages=2 vmap\n"
    b"0xffffc90060000000-0xffffc90060003000   12288 unpurged vm_area\n"
)
MEMINFO_EXTRA = (
    b"VmallocUsed:      524288 kB\nZswap:            102400 kB\nZswapped:         307200 kB\n"
    b"GPUActive:       2097152 kB\nGPUReclaim:       524288 kB\nBalloon:         1048576 kB\nHugePages_Total:       0\n"
)
VMSTAT_EXTRA = (
    b"nr_free_pages 1\nallocstall_normal 5\nallocstall_movable 7\ncompact_stall 30\ncompact_fail 20\nzswpin 4\n"
    b"zswpout 9\nballoon_inflate 700\nballoon_deflate 200\n"
)
