// Bindings of the training step; arguments as in module.cpp, validated in patchsae_kernels/cpu/step.py and adam.py.
#include "module_step.hpp"

#include "adam.hpp"
#include "huge.hpp"
#include "product.hpp"
#include "step.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace patchsae {
namespace {

template <class T> T *at(uintptr_t address) { return reinterpret_cast<T *>(address); }

void bound_sort(uintptr_t indices, uintptr_t indptr, int64_t rows, int64_t nnz, int64_t latents, uintptr_t latent_indptr,
                uintptr_t tokens, uintptr_t order, int threads) {
  const Csr z{nullptr, at<const int32_t>(indices), at<const int64_t>(indptr), rows};
  sort_by_latent(z, nnz, latents, at<int64_t>(latent_indptr), at<int32_t>(tokens), at<int64_t>(order), threads);
}

void bound_gradients(uintptr_t indptr, uintptr_t tokens, int64_t latents, int64_t width, uintptr_t g, uintptr_t W,
                     float constant, uintptr_t dots, uintptr_t values, uintptr_t sum_g, uintptr_t x, uintptr_t sum_x,
                     uintptr_t sum_dots, bool accumulate, int threads) {
  latent_gradients({at<const int64_t>(indptr), at<const int32_t>(tokens), width, at<const float>(g), at<const float>(W),
                    constant, at<float>(dots), at<const float>(values), at<float>(sum_g), at<const float>(x),
                    at<float>(sum_x), at<float>(sum_dots), accumulate},
                   latents, threads);
}

void bound_residuals(uintptr_t values, uintptr_t indptr, int64_t rows, uintptr_t x, uintptr_t y, int64_t width,
                     int64_t first_token, int64_t tokens_per_image, float cls_weight, int64_t elements, uintptr_t grad,
                     uintptr_t totals, int threads) {
  residuals({at<const float>(values), nullptr, at<const int64_t>(indptr), rows}, at<const float>(x), at<const float>(y),
            {width, first_token, tokens_per_image, cls_weight, elements}, at<float>(grad), at<double>(totals), threads);
}

void bound_column_sums(uintptr_t M, int64_t rows, int64_t width, double sign, uintptr_t totals, int threads) {
  column_sums(at<const float>(M), rows, width, sign, at<double>(totals), threads);
}

void bound_adam(uintptr_t p, int64_t p_stride, uintptr_t grad, int64_t grad_stride, uintptr_t m, int64_t m_stride,
                uintptr_t v, int64_t v_stride, int64_t rows, int64_t width, int64_t step, double lr, double beta1,
                double beta2, double eps, bool unit_rows, int threads) {
  adam({at<float>(p), p_stride}, {at<const float>(grad), grad_stride}, {at<float>(m), m_stride},
       {at<float>(v), v_stride}, rows, width, {step, lr, beta1, beta2, eps, unit_rows}, threads);
}

void bound_product(uintptr_t a, int64_t a_row, int64_t a_column, uintptr_t b, int64_t b_stride, uintptr_t c,
                   int64_t c_stride, int64_t rows, int64_t depth, int64_t columns, bool accumulate, int threads) {
  product({at<const float>(a), a_row, a_column, at<const float>(b), b_stride, at<float>(c), c_stride, rows, depth,
           columns, accumulate},
          threads);
}

} // namespace

void bind_step(nb::module_ &m) {
  const auto unlocked = nb::call_guard<nb::gil_scoped_release>();
  m.def("sort_by_latent", &bound_sort, "indices"_a, "indptr"_a, "rows"_a, "nnz"_a, "latents"_a, "latent_indptr"_a,
        "tokens"_a, "order"_a, "threads"_a, unlocked);
  m.def("latent_gradients", &bound_gradients, "indptr"_a, "tokens"_a, "latents"_a, "width"_a, "g"_a, "W"_a, "constant"_a,
        "dots"_a, "values"_a, "sum_g"_a, "x"_a, "sum_x"_a, "sum_dots"_a, "accumulate"_a, "threads"_a, unlocked);
  m.def("residuals", &bound_residuals, "values"_a, "indptr"_a, "rows"_a, "x"_a, "y"_a, "width"_a, "first_token"_a,
        "tokens_per_image"_a, "cls_weight"_a, "elements"_a, "grad"_a, "totals"_a, "threads"_a, unlocked);
  m.def("column_sums", &bound_column_sums, "M"_a, "rows"_a, "width"_a, "sign"_a, "totals"_a, "threads"_a, unlocked);
  m.def("adam", &bound_adam, "p"_a, "p_stride"_a, "grad"_a, "grad_stride"_a, "m"_a, "m_stride"_a, "v"_a, "v_stride"_a,
        "rows"_a, "width"_a, "step"_a, "lr"_a, "beta1"_a, "beta2"_a, "eps"_a, "unit_rows"_a, "threads"_a, unlocked);
  m.def("product", &bound_product, "a"_a, "a_row"_a, "a_column"_a, "b"_a, "b_stride"_a, "c"_a, "c_stride"_a, "rows"_a,
        "depth"_a, "columns"_a, "accumulate"_a, "threads"_a, unlocked);
  m.def("prefer_huge_pages", [](uintptr_t data, int64_t bytes) { prefer_huge_pages(at<void>(data), bytes); }, "data"_a,
        "bytes"_a);
}

} // namespace patchsae
