/* The losses kernels of the CPU backend. */
#include "kernels/cpu/cpu.h"

void SIMD_NAME(install_losses)(Backend *b) { (void)b; }
