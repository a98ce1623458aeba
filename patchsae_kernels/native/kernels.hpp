// What is compiled once per level: a table of the row and tile kernels of every op. Drivers (decode.cpp, ...) know no level;
// kernels (kernels_*.inc) know no threads and no allocation.
//
// A translation unit of a level must not emit code that others could share: an inline function or a template from a header,
// compiled here for AVX-512, could be the copy that the linker keeps for everybody. So kernels_*.inc live in an unnamed
// namespace and use nothing of the standard library beyond <cstdint>, <cstddef> and <cstring>.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels_encode.hpp"
#include "kernels_step.hpp"

namespace patchsae {

struct Csr {
  const float *values;
  const int32_t *indices;
  const int64_t *indptr; // [rows + 1]
  int64_t rows;
};

// The entries of one row of CSR latents, or of a part of one.
struct Entries {
  const float *values;
  const int32_t *indices;
  int64_t count;
  int64_t ahead; // indices that may be read from here on, >= count: later rows, for prefetching
};

// The reconstructions of one token at some columns by the entries between consecutive ks, and where their running sums go.
struct Sweep {
  const float *parts; // [ks + 1, columns]: segment j at parts + j * columns; not read where lengths[j] is 0
  const int64_t *lengths; // [ks + 1] entries of the segments
  const int64_t *slots; // [ks]: the place in the output of the j-th smallest k
  int64_t ks;
  float *on, *off; // output of slot 0, of this token at these columns
  int64_t stride; // floats from one slot to the next
};

struct DecodeKernels {
  int64_t block; // columns to ask for at a time: as many as fit in registers
  // y[0:columns] = bias + sum of values[p] * W[indices[p] * width + 0..columns-1]; W is float32 or bfloat16. At most `block`
  // columns; fewer take longer for each. A null bias is 0.
  void (*f32)(const Entries &z, const float *W, int64_t width, const float *bias, float *y, int64_t columns);
  void (*bf16)(const Entries &z, const uint16_t *W, int64_t width, const float *bias, float *y, int64_t columns);
  // on[j] = bias + segments 0..j, off[j] = bias + segments ks..j+1, added in this order.
  void (*sweep)(const Sweep &s, const float *bias, int64_t columns);
};

struct Kernels {
  DecodeKernels decode;
  EncodeKernels encode;
  StepKernels step;
};

} // namespace patchsae
