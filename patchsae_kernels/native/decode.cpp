#include "decode.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

// One portable source; on x86-64 GCC compiles the row kernels for three levels and picks one at load time.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define PATCHSAE_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), flatten))
#else
#define PATCHSAE_MULTIVERSION
#endif

namespace patchsae {
namespace {

constexpr int LANES = 16;               // floats in one vector; wider than the register it is lowered to is fine
constexpr int VECTORS = 12;             // accumulators kept in registers over a whole row of non-zeros
constexpr int BLOCK = LANES * VECTORS;  // 192 columns at a time: 768 is four blocks
constexpr int64_t PREFETCH_AHEAD = 4;   // non-zeros; rows of W are scattered, so the hardware cannot guess them

typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t))));
typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));

inline Vector load(const float *p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline Vector load(const uint16_t *p) {
  Halves h;
  std::memcpy(&h, p, sizeof h);
  Words w = __builtin_convertvector(h, Words) << 16;
  Vector v;
  std::memcpy(&v, &w, sizeof v);
  return v;
}

inline float widen(float x) { return x; }

inline float widen(uint16_t x) {
  uint32_t w = uint32_t(x) << 16;
  float f;
  std::memcpy(&f, &w, sizeof f);
  return f;
}

template <class Weight>
inline void block_row(const float *values, const int32_t *indices, int64_t count, const Weight *W, const float *bias,
                      float *y, int64_t width) {
  Vector acc[VECTORS];
  for (int v = 0; v < VECTORS; ++v) acc[v] = load(bias + v * LANES);
  for (int64_t p = 0; p < count; ++p) {
    if (p + PREFETCH_AHEAD < count) {
      const char *next = reinterpret_cast<const char *>(W + int64_t(indices[p + PREFETCH_AHEAD]) * width);
      for (size_t byte = 0; byte < BLOCK * sizeof(Weight); byte += 64) __builtin_prefetch(next + byte);
    }
    const Weight *row = W + int64_t(indices[p]) * width;
    for (int v = 0; v < VECTORS; ++v) acc[v] += values[p] * load(row + v * LANES);
  }
  for (int v = 0; v < VECTORS; ++v) std::memcpy(y + v * LANES, &acc[v], sizeof acc[v]);
}

template <class Weight>
inline void tail_row(const float *values, const int32_t *indices, int64_t count, const Weight *W, const float *bias,
                     float *y, int64_t width, int64_t columns) {
  float acc[BLOCK];
  std::copy_n(bias, columns, acc);
  for (int64_t p = 0; p < count; ++p) {
    const Weight *row = W + int64_t(indices[p]) * width;
    for (int64_t d = 0; d < columns; ++d) acc[d] += values[p] * widen(row[d]);
  }
  std::copy_n(acc, columns, y);
}

template <class Weight>
inline void whole_row(const Csr &z, int64_t n, const Weight *W, const float *bias, float *y, int64_t width) {
  const int64_t begin = z.indptr[n], count = z.indptr[n + 1] - begin;
  const float *values = z.values + begin;
  const int32_t *indices = z.indices + begin;
  int64_t d = 0;
  for (; d + BLOCK <= width; d += BLOCK) block_row(values, indices, count, W + d, bias + d, y + n * width + d, width);
  if (d < width) tail_row(values, indices, count, W + d, bias + d, y + n * width + d, width, width - d);
}

PATCHSAE_MULTIVERSION void row_f32(const Csr &z, int64_t n, const float *W, const float *b, float *y, int64_t width) {
  whole_row(z, n, W, b, y, width);
}

PATCHSAE_MULTIVERSION void row_bf16(const Csr &z, int64_t n, const uint16_t *W, const float *b, float *y,
                                    int64_t width) {
  whole_row(z, n, W, b, y, width);
}

} // namespace

void check(const Csr &z, int64_t nnz, int64_t latents) {
  bool ascends = z.indptr[0] == 0 && z.indptr[z.rows] == nnz;
  for (int64_t n = 0; n < z.rows; ++n) ascends &= z.indptr[n] <= z.indptr[n + 1];
  if (!ascends) throw std::invalid_argument("indptr does not ascend from 0 to nnz = " + std::to_string(nnz));
  uint32_t largest = 0; // a negative index is a large unsigned one
  for (int64_t p = 0; p < nnz; ++p) largest = std::max(largest, uint32_t(z.indices[p]));
  if (nnz && int64_t(largest) >= latents)
    throw std::invalid_argument("indices reach " + std::to_string(int32_t(largest)) + "; expected 0.." +
                                std::to_string(latents - 1));
}

void decode_f32(const Csr &z, const float *W, const float *bias, float *y, int64_t width, int threads) {
#pragma omp parallel for schedule(dynamic, 8) num_threads(threads)
  for (int64_t n = 0; n < z.rows; ++n) row_f32(z, n, W, bias, y, width);
}

void decode_bf16(const Csr &z, const uint16_t *W, const float *bias, float *y, int64_t width, int threads) {
#pragma omp parallel for schedule(dynamic, 8) num_threads(threads)
  for (int64_t n = 0; n < z.rows; ++n) row_bf16(z, n, W, bias, y, width);
}

const char *isa() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
  if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4";
  if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3";
#endif
  return "portable";
}

} // namespace patchsae
