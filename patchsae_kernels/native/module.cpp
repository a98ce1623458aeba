// Python bindings. Arguments are addresses that patchsae_kernels/cpu/ has validated: passing integers costs
// a tenth of a microsecond, an ndarray argument two.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "decode.hpp"
#include "levels.hpp"
#include "module_step.hpp"
#include "module_encode.hpp"
#include "module_step.hpp"
#include "stats.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Unlocked = nb::call_guard<nb::gil_scoped_release>;

template <class T> T *at(uintptr_t address) { return reinterpret_cast<T *>(address); }

std::vector<std::string> level_names() {
  std::vector<std::string> names;
  for (patchsae::Level l : patchsae::granted()) names.push_back(patchsae::name(l));
  return names;
}

// A CSR matrix whose indices and indptr have been checked.
patchsae::Csr checked(uintptr_t values, uintptr_t indices, uintptr_t indptr, int64_t rows, int64_t nnz, int64_t latents) {
  const patchsae::Csr z{at<const float>(values), at<const int32_t>(indices), at<const int64_t>(indptr), rows};
  patchsae::check(z, nnz, latents);
  return z;
}

void decode(uintptr_t values, uintptr_t indices, uintptr_t indptr, int64_t rows, int64_t nnz, uintptr_t W,
            bool W_is_bf16, int64_t latents, uintptr_t bias, uintptr_t y, int64_t width, int threads) {
  patchsae::decode(checked(values, indices, indptr, rows, nnz, latents), {at<const void>(W), W_is_bf16, latents, width},
                   at<const float>(bias), at<float>(y), threads);
}

void decode_masked(uintptr_t values, uintptr_t indices, uintptr_t indptr, int64_t rows, int64_t nnz, uintptr_t W,
                   bool W_is_bf16, int64_t latents, uintptr_t bias, uintptr_t y, int64_t width, int threads,
                   uintptr_t keep, uintptr_t class_ids) {
  patchsae::decode_masked(checked(values, indices, indptr, rows, nnz, latents),
                          {at<const uint8_t>(keep), at<const int64_t>(class_ids), latents},
                          {at<const void>(W), W_is_bf16, latents, width}, at<const float>(bias), at<float>(y), threads);
}

void decode_sweep(uintptr_t values, uintptr_t indices, uintptr_t indptr, int64_t rows, int64_t nnz, uintptr_t W,
                  bool W_is_bf16, int64_t latents, uintptr_t bias, uintptr_t on, int64_t width, int threads,
                  uintptr_t rank, uintptr_t class_ids, const std::vector<int64_t> &ks, uintptr_t off) {
  patchsae::decode_sweep(checked(values, indices, indptr, rows, nnz, latents),
                         {at<const int32_t>(rank), at<const int64_t>(class_ids), latents}, ks,
                         {at<const void>(W), W_is_bf16, latents, width}, at<const float>(bias), at<float>(on),
                         at<float>(off), threads);
}

void latent_stats(uintptr_t values, uintptr_t indices, uintptr_t indptr, int64_t rows, int64_t nnz, int64_t latents,
                  int64_t tokens, int64_t first_image, uintptr_t labels, float threshold, uintptr_t sums,
                  uintptr_t counts, uintptr_t image_counts, uintptr_t max_values, uintptr_t max_position,
                  uintptr_t class_counts, int threads) {
  patchsae::latent_stats(checked(values, indices, indptr, rows, nnz, latents), latents,
                         {tokens, first_image, at<const int64_t>(labels)}, threshold,
                         {at<double>(sums), at<int64_t>(counts), at<int64_t>(image_counts), at<float>(max_values),
                          at<int64_t>(max_position), at<int64_t>(class_counts)},
                         threads);
}

void pool_count(uintptr_t values, uintptr_t indices, uintptr_t indptr, int64_t rows, int64_t nnz, int64_t latents,
                int64_t tokens, uintptr_t pooled_indptr, int threads) {
  patchsae::pool_count(checked(values, indices, indptr, rows, nnz, latents), latents, tokens, at<int64_t>(pooled_indptr),
                       threads);
}

void pool_sums(uintptr_t values, uintptr_t indices, uintptr_t indptr, int64_t rows, int64_t nnz, int64_t latents,
               int64_t tokens, uintptr_t pooled_indptr, uintptr_t pooled_values, uintptr_t pooled_indices, int threads) {
  patchsae::pool_sums(checked(values, indices, indptr, rows, nnz, latents), latents, tokens,
                      at<const int64_t>(pooled_indptr), at<float>(pooled_values), at<int32_t>(pooled_indices), threads);
}

} // namespace

NB_MODULE(_native, m) {
  m.def("levels", &level_names, "Names of the levels that this machine grants, ascending.");
  m.def("level", [] { return patchsae::name(patchsae::level()); }, "Name of the level in force.");
  m.def("limit", [] { return patchsae::limit(); }, "Why the next level is not granted; empty at the top.");
  m.def("set_level", &patchsae::set_level, "name"_a);
  m.def("decode", &decode, "values"_a, "indices"_a, "indptr"_a, "rows"_a, "nnz"_a, "W"_a, "W_is_bf16"_a, "latents"_a,
        "bias"_a, "y"_a, "width"_a, "threads"_a, Unlocked());
  m.def("decode_masked", &decode_masked, "values"_a, "indices"_a, "indptr"_a, "rows"_a, "nnz"_a, "W"_a, "W_is_bf16"_a,
        "latents"_a, "bias"_a, "y"_a, "width"_a, "threads"_a, "keep"_a, "class_ids"_a, Unlocked());
  m.def("decode_sweep", &decode_sweep, "values"_a, "indices"_a, "indptr"_a, "rows"_a, "nnz"_a, "W"_a, "W_is_bf16"_a,
        "latents"_a, "bias"_a, "on"_a, "width"_a, "threads"_a, "rank"_a, "class_ids"_a, "ks"_a, "off"_a, Unlocked());
  m.def("latent_stats", &latent_stats, "values"_a, "indices"_a, "indptr"_a, "rows"_a, "nnz"_a, "latents"_a, "tokens"_a,
        "first_image"_a, "labels"_a, "threshold"_a, "sums"_a, "counts"_a, "image_counts"_a, "max_values"_a,
        "max_position"_a, "class_counts"_a, "threads"_a, Unlocked());
  m.def("pool_count", &pool_count, "values"_a, "indices"_a, "indptr"_a, "rows"_a, "nnz"_a, "latents"_a, "tokens"_a,
        "pooled_indptr"_a, "threads"_a, Unlocked());
  m.def("pool_sums", &pool_sums, "values"_a, "indices"_a, "indptr"_a, "rows"_a, "nnz"_a, "latents"_a, "tokens"_a,
        "pooled_indptr"_a, "pooled_values"_a, "pooled_indices"_a, "threads"_a, Unlocked());
  patchsae::bind_encode(m);
  patchsae::bind_step(m);
}
