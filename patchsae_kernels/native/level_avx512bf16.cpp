#define PATCHSAE_LEVEL avx512bf16
#include "level.inc"
