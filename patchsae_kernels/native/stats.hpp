// Statistics per latent over the tokens of whole images, and sums over the tokens of an image.
#pragma once

#include "kernels.hpp"

namespace patchsae {

// The accumulators of patchsae_kernels.LatentStats, each [latents] unless said otherwise.
struct Totals {
  double *sums;
  int64_t *counts, *image_counts;
  float *max_values;
  int64_t *max_position;
  int64_t *class_counts; // [classes, latents], or null
};

// Whole images of `tokens` rows each.
struct Images {
  int64_t tokens, first; // the number of the first image, for positions
  const int64_t *labels; // [images], -1 for none, or null
};

// Folds the entries into the accumulators. Sums add the entries of a latent in the order of the tokens, so no bit depends on
// `threads` or on how images were cut into batches. Fewer than 2^31 rows and latents.
void latent_stats(const Csr &z, int64_t latents, const Images &images, float threshold, const Totals &totals, int threads);

// Pooled CSR: pool_count writes indptr [images + 1], then pool_sums the sums over every image's tokens, added in float64 in
// the order of the tokens, and the latents that they are of.
void pool_count(const Csr &z, int64_t latents, int64_t tokens, int64_t *indptr, int threads);
void pool_sums(const Csr &z, int64_t latents, int64_t tokens, const int64_t *indptr, float *values, int32_t *indices,
               int threads);

} // namespace patchsae
