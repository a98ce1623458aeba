#define PATCHSAE_LEVEL avx2
#include "level.inc"
