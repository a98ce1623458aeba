#include "adam.hpp"

#include <algorithm>
#include <cmath>

#include "levels.hpp"
#include "parallel.hpp"

namespace patchsae {
namespace {

constexpr int64_t ELEMENTS = 16384; // handed to a thread at a time

AdamConstants constants(const AdamSettings &s) {
  const double correction1 = 1 - std::pow(s.beta1, double(s.step)), correction2 = 1 - std::pow(s.beta2, double(s.step));
  return {float(1 - s.beta1),           float(s.beta2), float(1 - s.beta2),
          float(std::sqrt(correction2)), float(s.eps),   float(s.lr / correction1)};
}

} // namespace

void adam(Rows<float> p, Rows<const float> grad, Rows<float> m, Rows<float> v, int64_t rows, int64_t width,
          const AdamSettings &settings, int threads) {
  const StepKernels &k = kernels().step;
  const AdamConstants c = constants(settings);
  const int64_t grain = std::max<int64_t>(1, ELEMENTS / std::max<int64_t>(1, width));
  parallel_for((rows + grain - 1) / grain, threads, 1, [&](int64_t block, int) {
    for (int64_t r = block * grain; r < std::min(rows, (block + 1) * grain); ++r)
      k.adam_row(c, p[r], grad[r], m[r], v[r], width, settings.unit_rows);
  });
}

} // namespace patchsae
