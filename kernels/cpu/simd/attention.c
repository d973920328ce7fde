/* The attention kernels of the CPU backend. */
#include "kernels/cpu/cpu.h"

void SIMD_NAME(install_attention)(Backend *b) { (void)b; }
