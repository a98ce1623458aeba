// Vec: 16 floats, whatever registers the level has for them (one zmm, two ymm, four xmm or NEON). Every operation rounds once
// per element and sum() adds in one fixed order. fma() rounds once where the level has the instruction and twice at the
// scalar level, so levels differ in bits while a level agrees with itself.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace patchsae::PATCHSAE_LEVEL {
namespace {

constexpr int LANES = 16;
using Mask = uint32_t; // bit i: lane i

#if defined(__AVX512F__)
constexpr int REGISTERS = 32; // vector registers; Vec takes LANES / WIDTH of them
constexpr int WIDTH = 16;
typedef __m512 Reg;
inline Reg reg_fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
inline Reg reg_max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
inline Reg reg_min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
inline Reg reg_sqrt(Reg a) { return _mm512_sqrt_ps(a); }
inline Reg reg_splat(float x) { return _mm512_set1_ps(x); }
inline Mask reg_above(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline Mask reg_at_least(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline Reg reg_widen(const uint16_t *p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
#elif defined(__AVX2__)
constexpr int REGISTERS = 16;
constexpr int WIDTH = 8;
typedef __m256 Reg;
inline Reg reg_fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
inline Reg reg_max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
inline Reg reg_min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
inline Reg reg_sqrt(Reg a) { return _mm256_sqrt_ps(a); }
inline Reg reg_splat(float x) { return _mm256_set1_ps(x); }
inline Mask reg_above(Reg a, Reg b) { return Mask(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ))); }
inline Mask reg_at_least(Reg a, Reg b) { return Mask(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ))); }
inline Reg reg_widen(const uint16_t *p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
#else
constexpr int REGISTERS = 16;
constexpr int WIDTH = 4;
typedef float Reg __attribute__((vector_size(16)));
inline Reg reg_fma(Reg a, Reg b, Reg c) { return a * b + c; }
inline Reg reg_max(Reg a, Reg b) { return a > b ? a : b; }
inline Reg reg_min(Reg a, Reg b) { return a < b ? a : b; }
inline Reg reg_sqrt(Reg a) {
  for (int i = 0; i < WIDTH; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
}
inline Reg reg_splat(float x) { return Reg{x, x, x, x}; }
inline Mask reg_above(Reg a, Reg b) {
  Mask m = 0;
  for (int i = 0; i < WIDTH; ++i) m |= Mask(a[i] > b[i]) << i;
  return m;
}
inline Mask reg_at_least(Reg a, Reg b) {
  Mask m = 0;
  for (int i = 0; i < WIDTH; ++i) m |= Mask(a[i] >= b[i]) << i;
  return m;
}
inline Reg reg_widen(const uint16_t *p) {
  uint32_t words[WIDTH];
  for (int i = 0; i < WIDTH; ++i) words[i] = uint32_t(p[i]) << 16;
  Reg r;
  std::memcpy(&r, words, sizeof r);
  return r;
}
#endif

constexpr int PARTS = LANES / WIDTH;

struct Vec {
  Reg r[PARTS];
};

// A Vec whose part i is `expression`, in which i is known.
#define PATCHSAE_EACH(expression)                                                                                      \
  Vec out;                                                                                                             \
  for (int i = 0; i < PARTS; ++i) out.r[i] = (expression);                                                             \
  return out

inline Vec operator+(Vec a, Vec b) { PATCHSAE_EACH(a.r[i] + b.r[i]); }
inline Vec operator-(Vec a, Vec b) { PATCHSAE_EACH(a.r[i] - b.r[i]); }
inline Vec operator*(Vec a, Vec b) { PATCHSAE_EACH(a.r[i] * b.r[i]); }
inline Vec operator/(Vec a, Vec b) { PATCHSAE_EACH(a.r[i] / b.r[i]); }
inline Vec fma(Vec a, Vec b, Vec c) { PATCHSAE_EACH(reg_fma(a.r[i], b.r[i], c.r[i])); } // a * b + c
inline Vec max(Vec a, Vec b) { PATCHSAE_EACH(reg_max(a.r[i], b.r[i])); }
inline Vec min(Vec a, Vec b) { PATCHSAE_EACH(reg_min(a.r[i], b.r[i])); }
inline Vec sqrt(Vec a) { PATCHSAE_EACH(reg_sqrt(a.r[i])); }
inline Vec splat(float x) { PATCHSAE_EACH(reg_splat(x)); }
inline Vec zero() { return splat(0.0f); }

inline Reg reg_load(const float *p) {
  Reg r;
  std::memcpy(&r, p, sizeof r);
  return r;
}
inline Vec load(const float *p) { PATCHSAE_EACH(reg_load(p + i * WIDTH)); }
inline Vec load(const uint16_t *p) { PATCHSAE_EACH(reg_widen(p + i * WIDTH)); } // bfloat16, widened

#undef PATCHSAE_EACH

inline void store(float *p, Vec a) {
  for (int i = 0; i < PARTS; ++i) std::memcpy(p + i * WIDTH, &a.r[i], sizeof a.r[i]);
}

// The first `count` (0..16) elements of p, the rest zero.
template <class T> inline Vec load_part(const T *p, int64_t count) {
  T buffer[LANES] = {};
  std::memcpy(buffer, p, size_t(count) * sizeof(T));
  return load(buffer);
}

inline void store_part(float *p, Vec a, int64_t count) {
  float buffer[LANES];
  store(buffer, a);
  std::memcpy(p, buffer, size_t(count) * sizeof(float));
}

inline Mask above(Vec a, Vec b) { // a > b
  Mask m = 0;
  for (int i = 0; i < PARTS; ++i) m |= reg_above(a.r[i], b.r[i]) << (i * WIDTH);
  return m;
}

inline Mask at_least(Vec a, Vec b) { // a >= b
  Mask m = 0;
  for (int i = 0; i < PARTS; ++i) m |= reg_at_least(a.r[i], b.r[i]) << (i * WIDTH);
  return m;
}

// Sum of the lanes: i + 8, i + 4, i + 2, i + 1, the same order at every level.
inline float sum(Vec a) {
  float t[LANES];
  store(t, a);
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) t[i] += t[i + half];
  return t[0];
}

} // namespace
} // namespace patchsae::PATCHSAE_LEVEL
