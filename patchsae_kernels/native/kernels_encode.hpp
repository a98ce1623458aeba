// The kernels of encode, see encode.hpp for what they are for.
#pragma once

#include <cstdint>

namespace patchsae {

constexpr int64_t ENCODE_PANEL = 128; // latents of one product; their packed and float32 rows stay in the second-level cache
constexpr int64_t ENCODE_GROUP = 32;  // tokens of one product, at most
constexpr int64_t ENCODE_PAIRS = 8;   // dot products computed together

// Packed weights: groups of 16 latents, [depth / 2][16][2] bfloat16 each, which is what both kinds of product read; depth is
// a multiple of 32. A panel is ENCODE_PANEL / 16 groups. Float32 rows have a depth that is a multiple of 16.
struct EncodeKernels {
  // Tokens of one product here, a multiple of what the registers hold.
  int64_t group;
  // out[t][s] = x[t] . panel[s], rows of ENCODE_PANEL. x and out have `group` rows, of which `tokens` count. Null at levels
  // without bfloat16 products.
  void (*product)(const uint16_t *x, int64_t tokens, const uint16_t *panel, int64_t depth, float *out);
  // out[t][s] = x[t] . W[s] in float32 in the fixed order; and the same for ENCODE_PAIRS pairs of rows.
  void (*dots)(const float *x, int64_t tokens, const float *W, int64_t latents, int64_t depth, float *out);
  void (*pairs)(const float *const *x, const float *const *w, int64_t depth, float *out);
  // Columns that may be active: products + up + R u + Q v > 0. Arrays here are readable, and `columns` and what is written
  // beside it writable, for 16 elements beyond the last that counts. Returns how many there are.
  int64_t (*screen)(const float *products, const float *up, const float *u, const float *v, float R, float Q,
                    int64_t latents, int32_t *columns);
  // Columns whose upper bound products + up + (R u + Q v) is at least `floor`, with both bounds.
  int64_t (*bounds)(const float *products, const float *up, const float *down, const float *u, const float *v, float R,
                    float Q, float floor, int64_t latents, int32_t *columns, float *uppers, float *lowers);
  // Columns with products + bias > threshold (> floor where threshold is null), and these values.
  int64_t (*active)(const float *products, const float *bias, const float *threshold, float floor, int64_t latents,
                    int32_t *columns, float *values);
  // low = bfloat16 of row; squares = |row|^2, |row - low|^2, |low|^2. depth: a multiple of 8.
  void (*round)(const float *row, int64_t depth, uint16_t *low, double *squares);
  // centred = x - b_dec, zero up to a multiple of 16; false if one of them is a NaN or an infinity.
  bool (*centre)(const float *x, const float *b_dec, int64_t width, float *centred);
  // Runs the instructions of the widest product here on registers, `rounds` times, and returns the operations done: what
  // this machine could do if nothing had to be loaded.
  int64_t (*peak)(int64_t rounds);
};

} // namespace patchsae
