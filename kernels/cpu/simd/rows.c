/* The rows kernels of the CPU backend. */
#include "kernels/cpu/cpu.h"

void SIMD_NAME(install_rows)(Backend *b) { (void)b; }
