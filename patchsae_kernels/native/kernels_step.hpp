// The kernels of the training step, as part of the table in kernels.hpp.
#pragma once

#include <cstdint>

namespace patchsae {

// Entries sorted by latent (see step.hpp), and what to compute of them; a null pointer leaves its part out. Row s of an
// output belongs to latent s; a latent without entries gets zeros, or keeps what is there when accumulating.
struct LatentGradients {
  const int64_t *indptr; // [S + 1]
  const int32_t *tokens; // [nnz]
  int64_t width;
  const float *g;      // [N, width]
  const float *W;      // [S, width]; null: `dots` is an input
  float constant;      // added to every dot
  float *dots;         // [nnz] <g of the token, W of the latent> + constant
  const float *values; // [nnz]
  float *sum_g;        // [S, width] sum of values * g of the token
  const float *x;      // [N, width]
  float *sum_x;        // [S, width] sum of dots * x of the token
  float *sum_dots;     // [S]
  bool accumulate;     // add to the outputs, continuing their sums
};

struct Squares {
  float error, x; // sums over a row
};

struct AdamConstants {
  float weight1, beta2, weight2; // 1 - beta1, beta2, 1 - beta2
  float root_correction2;        // sqrt(1 - beta2^step)
  float eps, step_size;          // step_size = lr / (1 - beta1^step)
};

struct Product {
  const float *a; // element (m, k) at m * a_row + k * a_column
  int64_t a_row, a_column;
  const float *b; // rows of `columns`, b_stride apart
  int64_t b_stride;
  float *c; // likewise
  int64_t c_stride;
  int64_t rows, depth, columns; // [rows, depth] times [depth, columns]
  bool accumulate;              // add to what is in c
};

struct StepKernels {
  void (*latent_gradients)(const LatentGradients &t, int64_t first, int64_t last);
  Squares (*residual)(const float *x, const float *y, float *error, int64_t width); // error = y - x
  void (*scale)(float *row, float factor, int64_t width);
  // unit: the gradient loses its component along p, and p ends with unit norm.
  void (*adam_row)(const AdamConstants &c, float *p, const float *grad, float *m, float *v, int64_t width, bool unit);
  void (*product)(const Product &t, int64_t first_row, int64_t last_row, int64_t first_column, int64_t last_column);
};

} // namespace patchsae
