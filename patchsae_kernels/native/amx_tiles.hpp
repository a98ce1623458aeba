// Eight AMX tiles of 16 rows of 64 bytes, or the same in plain C++ (PATCHSAE_EMULATE_AMX), so that the code around them is
// tested on any machine. Tile numbers are literals: the instructions encode them.
#pragma once

#include <cstdint>
#include <cstring>
#include <immintrin.h>

namespace patchsae::PATCHSAE_LEVEL {
namespace {

constexpr int TILE_ROWS = 16, TILE_BYTES = 64;

#if defined(PATCHSAE_EMULATE_AMX)

thread_local float emulated_tile[8][TILE_ROWS][TILE_BYTES / sizeof(float)];

inline void tiles_begin() {}
inline void tiles_end() {}

inline float bf16_half(float pair, int which) {
  uint32_t bits;
  std::memcpy(&bits, &pair, sizeof bits);
  bits = which ? bits & 0xffff0000u : bits << 16;
  std::memcpy(&pair, &bits, sizeof pair);
  return pair;
}

inline void emulated_dot(int c, int a, int b) {
  for (int m = 0; m < TILE_ROWS; ++m)
    for (int k = 0; k < TILE_ROWS; ++k)
      for (int n = 0; n < 16; ++n)
        for (int half = 0; half < 2; ++half)
          emulated_tile[c][m][n] += bf16_half(emulated_tile[a][m][k], half) * bf16_half(emulated_tile[b][k][n], half);
}

inline void emulated_load(int tile, const void *p, int64_t stride) {
  for (int m = 0; m < TILE_ROWS; ++m)
    std::memcpy(emulated_tile[tile][m], static_cast<const char *>(p) + m * stride, TILE_BYTES);
}

inline void emulated_store(int tile, void *p, int64_t stride) {
  for (int m = 0; m < TILE_ROWS; ++m)
    std::memcpy(static_cast<char *>(p) + m * stride, emulated_tile[tile][m], TILE_BYTES);
}

#define TILE_ZERO(tile) std::memset(emulated_tile[tile], 0, sizeof emulated_tile[tile])
#define TILE_LOAD(tile, p, stride) emulated_load(tile, p, stride)
#define TILE_STORE(tile, p, stride) emulated_store(tile, p, stride)
#define TILE_DOT(c, a, b) emulated_dot(c, a, b)

#else

// All tiles whole. The configuration belongs to the thread, so every call that uses tiles begins and ends it.
inline void tiles_begin() {
  alignas(64) uint8_t config[64] = {1};
  for (int tile = 0; tile < 8; ++tile) {
    config[16 + 2 * tile] = TILE_BYTES; // bytes in a row, 16 bits each
    config[48 + tile] = TILE_ROWS;
  }
  __asm__ volatile("" : : "m"(config)); // GCC's _tile_loadconfig names 8 of the 64 bytes, so stores of the others may go
  _tile_loadconfig(config);
}

inline void tiles_end() { _tile_release(); }

#define TILE_ZERO(tile) _tile_zero(tile)
#define TILE_LOAD(tile, p, stride) _tile_loadd(tile, p, stride)
#define TILE_STORE(tile, p, stride) _tile_stored(tile, p, stride)
#define TILE_DOT(c, a, b) _tile_dpbf16ps(c, a, b)

#endif

} // namespace
} // namespace patchsae::PATCHSAE_LEVEL
