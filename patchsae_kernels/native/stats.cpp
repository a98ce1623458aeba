#include "stats.hpp"

#include <algorithm>
#include <bit>
#include <numeric>
#include <vector>

#include "parallel.hpp"

namespace patchsae {
namespace {

constexpr int64_t RANGES_PER_THREAD = 4; // latents are not equally often active
constexpr int64_t AHEAD = 16;            // entries; the accumulators of all latents do not fit in the first cache

// What the call has found of one latent, together: an entry then touches one place of memory instead of six. Rows fit in
// 32 bits (the binding sees to it).
struct alignas(32) Cell {
  double sum;
  float max_value;
  uint32_t max_row, count, images;
  uint32_t seen; // the image that was counted last, from 1
};

bool ascending_rows(const Csr &z) {
  bool ascends = true;
  for (int64_t n = 0; n < z.rows; ++n)
    for (int64_t p = z.indptr[n] + 1; p < z.indptr[n + 1]; ++p) ascends &= z.indices[p - 1] < z.indices[p];
  return ascends;
}

struct Fold {
  const Csr &z;
  int64_t latents;
  const Images &images;
  float threshold;
  const Totals &totals;

  // The latents low..high-1, all tokens in order. `whole`: the entries of a row need not be searched for the range.
  void range(int32_t low, int32_t high, bool whole) const {
    std::vector<Cell> cells(size_t(high - low));
    for (int32_t s = low; s < high; ++s) cells[size_t(s - low)].sum = totals.sums[s];
    for (int64_t n = 0; n < z.rows; ++n) {
      const int32_t *begin = z.indices + z.indptr[n], *end = z.indices + z.indptr[n + 1];
      if (!whole) {
        begin = std::lower_bound(begin, end, low);
        end = std::lower_bound(begin, end, high);
      }
      row(cells.data(), low, n, begin, end);
    }
    for (int32_t s = low; s < high; ++s) merge(cells[size_t(s - low)], s);
  }

  void row(Cell *cells, int32_t low, int64_t n, const int32_t *begin, const int32_t *end) const {
    const int64_t image = n / images.tokens;
    const int64_t label = images.labels && totals.class_counts ? images.labels[image] : -1;
    int64_t *of_class = label >= 0 ? totals.class_counts + label * latents : nullptr;
    const float *values = z.values + (begin - z.indices);
    for (const int32_t *i = begin; i < end; ++i, ++values) {
      __builtin_prefetch(cells + (i[std::min<int64_t>(AHEAD, end - i - 1)] - low), 1);
      Cell &cell = cells[*i - low];
      const float value = *values;
      cell.sum += double(value);
      const bool over = value > threshold;
      cell.count += over;
      if (of_class) of_class[*i] += over;
      if (!(value > 0)) continue;
      cell.images += cell.seen != uint32_t(image) + 1;
      cell.seen = uint32_t(image) + 1;
      if (value > cell.max_value) cell.max_value = value, cell.max_row = uint32_t(n); // a tie stays with the earlier row
    }
  }

  void merge(const Cell &cell, int32_t s) const {
    totals.sums[s] = cell.sum;
    totals.counts[s] += cell.count;
    totals.image_counts[s] += cell.images;
    const int64_t position = cell.max_row + images.first * images.tokens;
    const float best = totals.max_values[s];
    if (!(cell.max_value > best || (cell.max_value == best && position < totals.max_position[s]))) return;
    totals.max_values[s] = cell.max_value;
    totals.max_position[s] = position;
  }
};

// One bit for every latent.
class Bits {
public:
  explicit Bits(int64_t latents) : words(size_t(latents + 63) / 64) {}
  void set(int32_t latent) { words[size_t(latent) / 64] |= uint64_t(1) << (latent % 64); }
  int64_t count() const {
    return std::accumulate(words.begin(), words.end(), int64_t(0), [](int64_t n, uint64_t w) { return n + std::popcount(w); });
  }
  // Calls visit(latent), ascending, for every bit, and clears them.
  template <class Visit> void drain(const Visit &visit) {
    for (size_t w = 0; w < words.size(); ++w)
      for (; words[w]; words[w] &= words[w] - 1) visit(int32_t(w * 64) + std::countr_zero(words[w]));
  }
  void clear() { std::fill(words.begin(), words.end(), 0); }

private:
  std::vector<uint64_t> words;
};

} // namespace

void latent_stats(const Csr &z, int64_t latents, const Images &images, float threshold, const Totals &totals,
                  int threads) {
  const Fold fold{z, latents, images, threshold, totals};
  const bool split = threads > 1 && ascending_rows(z);
  const int64_t ranges = split ? std::min(RANGES_PER_THREAD * threads, std::max<int64_t>(latents, 1)) : 1;
  parallel_for(ranges, threads, 1, [&](int64_t r, int) {
    fold.range(int32_t(latents * r / ranges), int32_t(latents * (r + 1) / ranges), ranges == 1);
  });
}

void pool_count(const Csr &z, int64_t latents, int64_t tokens, int64_t *indptr, int threads) {
  const int64_t images = z.rows / tokens;
  std::vector<std::vector<Bits>> scratch(size_t(std::max(threads, 1)));
  parallel_for(images, threads, 1, [&](int64_t image, int thread) {
    if (scratch[size_t(thread)].empty()) scratch[size_t(thread)].emplace_back(latents);
    Bits &seen = scratch[size_t(thread)][0];
    for (int64_t p = z.indptr[image * tokens]; p < z.indptr[(image + 1) * tokens]; ++p) seen.set(z.indices[p]);
    indptr[image + 1] = seen.count();
    seen.clear();
  });
  indptr[0] = 0;
  std::partial_sum(indptr, indptr + images + 1, indptr);
}

void pool_sums(const Csr &z, int64_t latents, int64_t tokens, const int64_t *indptr, float *values, int32_t *indices,
               int threads) {
  struct Scratch {
    Bits seen;
    std::vector<double> sums;
  };
  std::vector<std::vector<Scratch>> scratch(size_t(std::max(threads, 1)));
  parallel_for(z.rows / tokens, threads, 1, [&](int64_t image, int thread) {
    std::vector<Scratch> &mine = scratch[size_t(thread)];
    if (mine.empty()) mine.push_back({Bits(latents), std::vector<double>(size_t(latents))});
    auto &[seen, sums] = mine[0];
    for (int64_t p = z.indptr[image * tokens]; p < z.indptr[(image + 1) * tokens]; ++p) {
      seen.set(z.indices[p]);
      sums[size_t(z.indices[p])] += double(z.values[p]);
    }
    int64_t to = indptr[image];
    seen.drain([&](int32_t latent) {
      values[to] = float(sums[size_t(latent)]);
      indices[to++] = latent;
      sums[size_t(latent)] = 0;
    });
  });
}

} // namespace patchsae
