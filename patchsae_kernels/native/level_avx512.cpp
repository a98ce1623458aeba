#define PATCHSAE_LEVEL avx512
#include "level.inc"
