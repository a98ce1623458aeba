// Bindings of encode; arguments as in module.cpp, validated in patchsae_kernels/cpu/encode.py.
#include "module_encode.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <atomic>
#include <stdexcept>

#include "encode.hpp"
#include "levels.hpp"
#include "parallel.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace patchsae {
namespace {

template <class T> T *at(uintptr_t address) { return reinterpret_cast<T *>(address); }

Precision precision_of(const std::string &name) {
  if (name == "exact") return Precision::exact;
  if (name == "bf16") return Precision::bf16;
  if (name == "fp32") return Precision::fp32;
  throw std::invalid_argument("precision is '" + name + "'; expected exact, bf16 or fp32");
}

// Addresses of 0 stand for what is absent: packed weights with their terms, and the threshold.
std::unique_ptr<Encoded> bound_encode(uintptr_t x, int64_t rows, int64_t width, int64_t latents, uintptr_t W_rows,
                                          uintptr_t low, uintptr_t terms, uintptr_t bias, uintptr_t threshold,
                                          uintptr_t b_dec, int64_t k, const std::string &precision, int threads) {
  const EncodeWeights w{at<const float>(W_rows),    at<const uint16_t>(low), at<const float>(terms),
                                  at<const float>(bias),      at<const float>(threshold), at<const float>(b_dec),
                                  latents,                    width};
  const Precision wanted = precision_of(precision);
  nb::gil_scoped_release unlocked;
  return encode(w, at<const float>(x), rows, k, wanted, threads);
}

void bound_copy(const Encoded &e, uintptr_t values, uintptr_t indices, uintptr_t indptr, int threads) {
  e.copy(at<float>(values), at<int32_t>(indices), at<int64_t>(indptr), threads);
}

void bound_pack(uintptr_t rows, int64_t latents, int64_t depth, uintptr_t low, uintptr_t terms, int threads) {
  pack(at<const float>(rows), latents, depth, at<uint16_t>(low), at<float>(terms), threads);
}

int64_t bound_peak(int64_t rounds, int threads) {
  const auto peak = kernels().encode.peak;
  std::atomic<int64_t> operations{0};
  parallel_for(threads, threads, 1, [&](int64_t, int) { operations += peak(rounds); });
  return operations;
}

} // namespace

void bind_encode(nb::module_ &m) {
  nb::class_<Encoded>(m, "Encoded")
      .def_ro("entries", &Encoded::entries)
      .def_ro("finite", &Encoded::finite)
      .def("copy", &bound_copy, "values"_a, "indices"_a, "indptr"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("encode", &bound_encode, "x"_a, "rows"_a, "width"_a, "latents"_a, "W_rows"_a, "low"_a, "terms"_a, "bias"_a,
        "threshold"_a, "b_dec"_a, "k"_a, "precision"_a, "threads"_a);
  m.def("pack", &bound_pack, "rows"_a, "latents"_a, "depth"_a, "low"_a, "terms"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("peak", &bound_peak, "rounds"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("wants_packed", &wants_packed);
  m.attr("PANEL") = ENCODE_PANEL;
}

} // namespace patchsae
