// The training step on the non-zeros: entries sorted by latent, gradients of every latent, residuals of every token.
#pragma once

#include "kernels.hpp"

namespace patchsae {

// The transpose of a CSR pattern: latent s holds entries latent_indptr[s]..latent_indptr[s + 1] of `tokens` (ascending) and
// of `order` (the place of each in the CSR). A stable counting sort, so there is one result. Throws std::invalid_argument
// as check() does.
void sort_by_latent(const Csr &z, int64_t nnz, int64_t latents, int64_t *latent_indptr, int32_t *tokens, int64_t *order,
                    int threads);

// Every sum runs over a latent's entries in order, so the bits do not depend on `threads`, nor on a cut of the tokens into
// calls that accumulate.
void latent_gradients(const LatentGradients &t, int64_t latents, int threads);

struct Residuals {
  int64_t width;
  int64_t first_token;      // number of the first row in the batch, to find the CLS tokens
  int64_t tokens_per_image; // 0: no CLS tokens
  float cls_weight;
  int64_t elements; // of the whole batch: the mean runs over them
};

// With e = y - x and c = cls_weight on CLS tokens, else 1: grad = 2 c e / (|x| elements); adds to totals[0..2] the sums of
// c e^2 / |x|, of e^2 and of the latents, in the order of the tokens.
void residuals(const Csr &z, const float *x, const float *y, const Residuals &r, float *grad, double *totals, int threads);

// totals[d] += sum over the rows of sign * M[n, d], in order.
void column_sums(const float *M, int64_t rows, int64_t width, double sign, double *totals, int threads);

} // namespace patchsae
