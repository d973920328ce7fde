/* The norm kernels of the CPU backend. */
#include "kernels/cpu/cpu.h"

void SIMD_NAME(install_norm)(Backend *b) { (void)b; }
