#include "step.hpp"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "decode.hpp"
#include "levels.hpp"
#include "parallel.hpp"

namespace patchsae {
namespace {

constexpr int64_t LATENTS = 64;   // handed to a thread at a time
constexpr int64_t ROWS = 16;      // tokens
constexpr int64_t COLUMNS = 64;   // of a column sum
constexpr int MAX_SORT_PARTS = 16; // each has its own counters

} // namespace

void sort_by_latent(const Csr &z, int64_t nnz, int64_t latents, int64_t *latent_indptr, int32_t *tokens, int64_t *order,
                    int threads) {
  check(z, nnz, latents);
  const int64_t parts = std::clamp(threads, 1, MAX_SORT_PARTS);
  std::vector<int64_t> place(parts * latents, 0); // first the count of a latent in a part of the tokens, then its next place
  const auto tokens_of = [&](int64_t part) { return z.rows * part / parts; };
  parallel_for(parts, threads, 1, [&](int64_t part, int) {
    int64_t *count = place.data() + part * latents;
    for (int64_t p = z.indptr[tokens_of(part)]; p < z.indptr[tokens_of(part + 1)]; ++p) ++count[z.indices[p]];
  });
  int64_t next = 0;
  for (int64_t s = 0; s < latents; ++s) {
    latent_indptr[s] = next;
    for (int64_t part = 0; part < parts; ++part) next += std::exchange(place[part * latents + s], next);
  }
  latent_indptr[latents] = next;
  parallel_for(parts, threads, 1, [&](int64_t part, int) {
    int64_t *to = place.data() + part * latents;
    for (int64_t n = tokens_of(part); n < tokens_of(part + 1); ++n)
      for (int64_t p = z.indptr[n]; p < z.indptr[n + 1]; ++p) {
        const int64_t q = to[z.indices[p]]++;
        tokens[q] = int32_t(n);
        order[q] = p;
      }
  });
}

void latent_gradients(const LatentGradients &t, int64_t latents, int threads) {
  const StepKernels &k = kernels().step;
  parallel_for((latents + LATENTS - 1) / LATENTS, threads, 1, [&](int64_t block, int) {
    k.latent_gradients(t, block * LATENTS, std::min(latents, (block + 1) * LATENTS));
  });
}

void residuals(const Csr &z, const float *x, const float *y, const Residuals &r, float *grad, double *totals,
               int threads) {
  const StepKernels &k = kernels().step;
  std::vector<double> terms(3 * z.rows);
  parallel_for(z.rows, threads, ROWS, [&](int64_t n, int) {
    float *row = grad + n * r.width;
    const Squares squares = k.residual(x + n * r.width, y + n * r.width, row, r.width);
    const bool is_cls = r.tokens_per_image && (r.first_token + n) % r.tokens_per_image == 0;
    const float weight = is_cls ? r.cls_weight : 1.0f, norm = std::sqrt(squares.x);
    k.scale(row, 2.0f * weight / (norm * float(r.elements)), r.width);
    double active = 0;
    for (int64_t p = z.indptr[n]; p < z.indptr[n + 1]; ++p) active += z.values[p];
    terms[3 * n] = double(weight) * squares.error / norm;
    terms[3 * n + 1] = squares.error;
    terms[3 * n + 2] = active;
  });
  for (int64_t n = 0; n < z.rows; ++n)
    for (int i = 0; i < 3; ++i) totals[i] += terms[3 * n + i];
}

void column_sums(const float *M, int64_t rows, int64_t width, double sign, double *totals, int threads) {
  parallel_for((width + COLUMNS - 1) / COLUMNS, threads, 1, [&](int64_t block, int) {
    const int64_t first = block * COLUMNS, last = std::min(width, first + COLUMNS);
    for (int64_t n = 0; n < rows; ++n)
      for (int64_t d = first; d < last; ++d) totals[d] += sign * M[n * width + d];
  });
}

} // namespace patchsae
