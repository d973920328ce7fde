#include "cli/commands.h"
int bench_ops_main(int c,char**v){(void)c;(void)v;return 1;}
