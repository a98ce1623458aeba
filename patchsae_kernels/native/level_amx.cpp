#define PATCHSAE_LEVEL amx
#define PATCHSAE_TILES
#include "level.inc"
