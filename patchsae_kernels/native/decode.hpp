// Decode of CSR latents: y[n, :] = b + sum over the non-zeros of row n of values[p] * W[indices[p], :].
//
// Every output element is accumulated in float32 in the order of the non-zeros, so the bits depend neither on `threads` nor
// on which rows are decoded together.
#pragma once

#include <vector>

#include "kernels.hpp"

namespace patchsae {

// [latents, width], row-major.
struct Dictionary {
  const void *rows;
  bool is_bf16; // the upper halves of float32; else float32
  int64_t latents, width;
};

// A table [classes, latents] of which every row of the latents takes one line; without ids all take the first.
template <class T> struct PerLatent {
  const T *table;
  const int64_t *ids; // [rows], in range, or null
  int64_t latents;
  const T *of(int64_t row) const { return table + (ids ? ids[row] * latents : 0); }
};

// Throws std::invalid_argument unless indptr ascends from 0 to at most `nnz` and every index that it reaches lies in
// 0..latents-1: a matrix that a user put together by hand must not read outside of anything.
void check(const Csr &z, int64_t nnz, int64_t latents);

// y is [rows, width].
void decode(const Csr &z, const Dictionary &W, const float *bias, float *y, int threads);

// The same of the entries that `keep` names; rows of W that it drops are not touched.
void decode_masked(const Csr &z, const PerLatent<uint8_t> &keep, const Dictionary &W, const float *bias, float *y,
                   int threads);

// on, off: [ks, rows, width]. on[i] decodes the entries with rank < ks[i], off[i] the others; see pk.decode_sweep.
void decode_sweep(const Csr &z, const PerLatent<int32_t> &rank, const std::vector<int64_t> &ks, const Dictionary &W,
                  const float *bias, float *on, float *off, int threads);

} // namespace patchsae
