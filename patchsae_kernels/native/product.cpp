#include "product.hpp"

#include <algorithm>

#include "levels.hpp"
#include "parallel.hpp"

namespace patchsae {
namespace {

constexpr int64_t ROWS = 96, COLUMNS = 64; // of c, handed to a thread at a time

} // namespace

void product(const Product &t, int threads) {
  const StepKernels &k = kernels().step;
  const int64_t high = (t.rows + ROWS - 1) / ROWS, wide = (t.columns + COLUMNS - 1) / COLUMNS;
  parallel_for(high * wide, threads, 1, [&](int64_t task, int) {
    const int64_t row = task % high * ROWS, column = task / high * COLUMNS; // neighbours share a panel of b
    k.product(t, row, std::min(t.rows, row + ROWS), column, std::min(t.columns, column + COLUMNS));
  });
}

} // namespace patchsae
