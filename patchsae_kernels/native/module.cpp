// Python bindings. Arguments are addresses that patchsae_kernels/cpu.py has validated: passing integers costs
// a tenth of a microsecond, an ndarray argument two.
#include <nanobind/nanobind.h>

#include "decode.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T> const T *at(uintptr_t address) { return reinterpret_cast<const T *>(address); }

void decode(uintptr_t values, uintptr_t indices, uintptr_t indptr, int64_t rows, int64_t nnz, uintptr_t W,
            bool W_is_bf16, int64_t latents, uintptr_t bias, uintptr_t y, int64_t width, int threads) {
  const patchsae::Csr z{at<float>(values), at<int32_t>(indices), at<int64_t>(indptr), rows};
  patchsae::check(z, nnz, latents);
  float *out = reinterpret_cast<float *>(y);
  if (W_is_bf16)
    patchsae::decode_bf16(z, at<uint16_t>(W), at<float>(bias), out, width, threads);
  else
    patchsae::decode_f32(z, at<float>(W), at<float>(bias), out, width, threads);
}

} // namespace

NB_MODULE(_native, m) {
  m.def("decode", &decode, "values"_a, "indices"_a, "indptr"_a, "rows"_a, "nnz"_a, "W"_a, "W_is_bf16"_a, "latents"_a,
        "bias"_a, "y"_a, "width"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("isa", &patchsae::isa);
}
