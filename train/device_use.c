/* See device_use.h. */
#include "train/device_use.h"
#include "base/error.h"
#include "kernels/cuda/host/work_space.h"

static const double GIB = 0x1p30;

bool device_use(Backend *b, DeviceUse *u) {
    size_t left = 0, all = 0;
    *u = (DeviceUse){0};
    if (!b->memory || !b->memory(b, &left, &all)) return false;
    *u = (DeviceUse){.all = (double)all, .free = (double)left, .held = (double)b->memory_held(b)};
    u->gpu = b->device ? gpu_kind(b->device) : NULL;
    u->others = u->all - u->free - u->held;
    return true;
}

void device_use_first(Backend *b) {
    enum { SIDE = 256 };
    const size_t bytes = SIDE * SIDE * sizeof(float);
    void *memory = b->allocate(b, bytes);
    if (!memory) return; // there is no room for anything, which is said elsewhere
    b->zero(b, memory, bytes);
    b->matmul(b, &(Matmul){.m = SIDE,
                           .n = SIDE,
                           .k = SIDE / 2,
                           .batch = 1,
                           .a = memory,
                           .a_row = SIDE / 2,
                           .a_column = 1,
                           .b = memory,
                           .b_row = 1,
                           .b_column = SIDE / 2,
                           .c = (char *)memory + bytes / 2,
                           .c_row = SIDE,
                           .in = BF16,
                           .out = BF16});
    b->wait(b);
    b->release(b, memory, bytes);
}

DeviceLimit device_use_limit(const DeviceUse *u, int sharing) {
    double context = u->others + DEVICE_LATER_BYTES;
    return (DeviceLimit){
        .bytes = u->free / sharing + u->held + u->others, .context = context, .measured = true, .gpu = u->gpu};
}

void device_use_report(Backend *b, const DeviceMemory *planned, Log *log) {
    DeviceUse u;
    double tensors = planned->tensors, all = tensors + planned->context;
    if (!device_use(b, &u)) return;
    if (!(tensors > 0)) {
        log_info(log, "GPU memory: %.2f GiB for tensors and work space, %.2f for all else; %.2f of %.2f are free",
                 u.held / GIB, u.others / GIB, u.free / GIB, u.all / GIB);
        return;
    }
    log_info(log,
             "GPU memory: planned %.3f GiB, held %.3f (%+.2f %%); of that tensors and work space %.3f and %.3f "
             "(%+.2f %%), CUDA, its libraries and other processes %.3f and %.3f; %.2f of %.2f are free",
             all / GIB, (u.held + u.others) / GIB, 100 * ((u.held + u.others) / all - 1), tensors / GIB, u.held / GIB,
             100 * (u.held / tensors - 1), planned->context / GIB, u.others / GIB, u.free / GIB, u.all / GIB);
}
