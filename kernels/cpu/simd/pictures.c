/* The pictures kernels of the CPU backend. */
#include "kernels/cpu/cpu.h"

void SIMD_NAME(install_pictures)(Backend *b) { (void)b; }
