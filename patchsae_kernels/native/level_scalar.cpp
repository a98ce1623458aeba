#define PATCHSAE_LEVEL scalar
#include "level.inc"
