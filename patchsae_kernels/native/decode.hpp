// Decode of CSR latents: y[n, :] = b + sum over the non-zeros of row n of values[p] * W[indices[p], :].
#pragma once

#include <cstdint>

namespace patchsae {

struct Csr {
  const float *values;
  const int32_t *indices;
  const int64_t *indptr; // [rows + 1]
  int64_t rows;
};

// Throws std::invalid_argument unless indptr ascends from 0 to `nnz` and every index lies in 0..latents-1: a
// matrix that a user put together by hand must not read outside of W.
void check(const Csr &z, int64_t nnz, int64_t latents);

// W is [latents, width] row-major float; bias is [width]; y is [rows, width]. Every output element is
// accumulated in float32 in the order of the non-zeros, so the bits do not depend on `threads`.
void decode_f32(const Csr &z, const float *W, const float *bias, float *y, int64_t width, int threads);

// The same with W in bfloat16 (the upper halves of float32), accumulated in float32.
void decode_bf16(const Csr &z, const uint16_t *W, const float *bias, float *y, int64_t width, int threads);

// What the loops were compiled for and the CPU grants: "x86-64-v4", "x86-64-v3" or "portable".
const char *isa();

} // namespace patchsae
