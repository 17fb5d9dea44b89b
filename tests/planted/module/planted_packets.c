// planted_packets.c - a kernel module that allocates packets and puts them into no queue, like a driver that loses them.
//
// Each packet has a linear head in slab, and one block of pages as its only fragment. Its device is the loopback of the
// first network namespace; it has no socket and no destructor. Only an array of pointers leads to the packets.
//
// Parameters: `packets`, how many; `order`, the order of each block. Read in /sys/module/planted_packets/parameters:
// `allocated`, the packets there are; `charge_bytes`, the sum of their truesize.
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/skbuff.h>
#include <net/net_namespace.h>

#define HEADER_BYTES 128

static unsigned int packets;
module_param(packets, uint, 0444);
MODULE_PARM_DESC(packets, "number of packets to allocate");

static unsigned int order;
module_param(order, uint, 0444);
MODULE_PARM_DESC(order, "order of the block of pages of each packet");

static unsigned int allocated;
module_param(allocated, uint, 0444);
MODULE_PARM_DESC(allocated, "number of packets that were allocated");

static unsigned long charge_bytes;
module_param(charge_bytes, ulong, 0444);
MODULE_PARM_DESC(charge_bytes, "sum of truesize of these packets");

static struct sk_buff **planted;

static struct sk_buff *allocate_packet(void)
{
    unsigned int block_bytes = PAGE_SIZE << order;
    struct sk_buff *packet = alloc_skb(HEADER_BYTES, GFP_KERNEL);
    struct page *block;

    if (!packet)
        return NULL;
    block = alloc_pages(order ? GFP_KERNEL | __GFP_COMP : GFP_KERNEL, order);
    if (!block) {
        kfree_skb(packet);
        return NULL;
    }
    skb_put_zero(packet, HEADER_BYTES);
    skb_add_rx_frag(packet, 0, block, 0, block_bytes, block_bytes);
    packet->dev = init_net.loopback_dev;
    return packet;
}

static void free_packets(void)
{
    while (allocated)
        kfree_skb(planted[--allocated]);
    kvfree(planted);
}

static int __init planted_packets_init(void)
{
    planted = kvcalloc(packets, sizeof(*planted), GFP_KERNEL);
    if (!planted)
        return -ENOMEM;
    while (allocated < packets) {
        struct sk_buff *packet = allocate_packet();

        if (!packet) {
            free_packets();
            return -ENOMEM;
        }
        planted[allocated++] = packet;
        charge_bytes += packet->truesize;
    }
    return 0;
}

static void __exit planted_packets_exit(void)
{
    free_packets();
}

module_init(planted_packets_init);
module_exit(planted_packets_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Loses packets, for tests");
