#include "decode.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>

#include "huge.hpp"
#include "levels.hpp"
#include "parallel.hpp"

namespace patchsae {
namespace {

constexpr int64_t ROWS = 16; // handed to a thread at a time

Entries entries(const Csr &z, int64_t begin, int64_t end) {
  return {z.values + begin, z.indices + begin, end - begin, z.indptr[z.rows] - begin};
}

// y[0:columns] of some entries; `column` is the first of them.
void decode_block(const DecodeKernels &k, const Entries &z, const Dictionary &W, int64_t column, const float *bias,
                  float *y, int64_t columns) {
  if (W.is_bf16)
    k.bf16(z, static_cast<const uint16_t *>(W.rows) + column, W.width, bias, y, columns);
  else
    k.f32(z, static_cast<const float *>(W.rows) + column, W.width, bias, y, columns);
}

// body(first row, last row, first column, columns, thread). Blocks of columns are the outer loop: the slice of W that all
// rows read together is a fraction of W, and more of it stays in the cache from row to row.
template <class Body> void for_blocks(int64_t rows, int64_t width, int64_t block, int threads, const Body &body) {
  const int64_t chunks = (rows + ROWS - 1) / ROWS, blocks = (width + block - 1) / block;
  parallel_for(chunks * blocks, threads, 1, [&](int64_t i, int thread) {
    const int64_t first = i % chunks * ROWS, column = i / chunks * block;
    body(first, std::min(first + ROWS, rows), column, std::min(block, width - column), thread);
  });
}

// Copies of the entries, row by row, that own their memory.
struct OwnedCsr {
  std::vector<float> values;
  std::vector<int32_t> indices;
  std::vector<int64_t> indptr;
  Csr view(int64_t rows) const { return {values.data(), indices.data(), indptr.data(), rows}; }
};

OwnedCsr kept(const Csr &z, const PerLatent<uint8_t> &keep, int threads) {
  OwnedCsr out;
  out.values.resize(size_t(z.indptr[z.rows]));
  out.indices.resize(out.values.size());
  out.indptr.assign(size_t(z.rows) + 1, 0);
  // Packed to the front of the row's own place, without a branch that depends on `keep`: it is as good as random.
  parallel_for(z.rows, threads, ROWS, [&](int64_t n, int) {
    const uint8_t *line = keep.of(n);
    int64_t to = z.indptr[n];
    for (int64_t p = z.indptr[n]; p < z.indptr[n + 1]; ++p) {
      out.values[to] = z.values[p];
      out.indices[to] = z.indices[p];
      to += line[z.indices[p]] != 0;
    }
    out.indptr[n + 1] = to - z.indptr[n];
  });
  for (int64_t n = 0; n < z.rows; ++n) { // then rows to the front, so that prefetching runs on into the next row
    const int64_t count = out.indptr[n + 1];
    if (count == 0) {
      out.indptr[n + 1] = out.indptr[n];
      continue;
    }
    std::memmove(&out.values[size_t(out.indptr[n])], &out.values[size_t(z.indptr[n])], size_t(count) * sizeof(float));
    std::memmove(&out.indices[size_t(out.indptr[n])], &out.indices[size_t(z.indptr[n])], size_t(count) * sizeof(int32_t));
    out.indptr[n + 1] += out.indptr[n];
  }
  return out;
}

// How many of the ascending ks are <= r, without a branch that depends on r: ranks are as good as random.
int64_t segment_of(const std::vector<int64_t> &ks, int64_t r) {
  const int64_t *base = ks.data();
  for (int64_t n = int64_t(ks.size()); n > 1; n -= n / 2) base += base[n / 2 - 1] <= r ? n / 2 : 0;
  return base - ks.data() + (ks.empty() ? 0 : *base <= r);
}

// The entries with those of a row sorted by segment, stably; indptr has a row for every (row, segment).
OwnedCsr segments(const Csr &z, const PerLatent<int32_t> &rank, const std::vector<int64_t> &ks, int threads) {
  const int64_t count = int64_t(ks.size()) + 1;
  OwnedCsr out;
  out.values.resize(size_t(z.indptr[z.rows]));
  out.indices.resize(out.values.size());
  out.indptr.assign(size_t(z.rows) * size_t(count) + 1, 0);
  std::vector<std::vector<int64_t>> places(size_t(std::max(threads, 1)));
  parallel_for(z.rows, threads, ROWS, [&](int64_t n, int thread) {
    const int32_t *line = rank.of(n);
    const int64_t begin = z.indptr[n], length = z.indptr[n + 1] - begin;
    std::vector<int64_t> &place = places[size_t(thread)]; // segments of the entries, then the ends of the segments
    place.assign(size_t(length + count), 0);
    int64_t *ends = place.data() + length;
    for (int64_t p = 0; p < length; ++p) ++ends[place[p] = segment_of(ks, line[z.indices[begin + p]])];
    std::exclusive_scan(ends, ends + count, ends, begin);
    for (int64_t p = 0; p < length; ++p) {
      const int64_t to = ends[place[p]]++;
      out.values[to] = z.values[begin + p];
      out.indices[to] = z.indices[begin + p];
    }
    std::copy_n(ends, count, out.indptr.begin() + n * count + 1);
  });
  return out;
}

} // namespace

void check(const Csr &z, int64_t nnz, int64_t latents) {
  bool ascends = z.indptr[0] == 0 && z.indptr[z.rows] <= nnz;
  for (int64_t n = 0; n < z.rows; ++n) ascends &= z.indptr[n] <= z.indptr[n + 1];
  if (!ascends) throw std::invalid_argument("indptr does not ascend from 0 to nnz = " + std::to_string(nnz));
  const uint32_t end = uint32_t(std::min<int64_t>(latents, INT32_MAX)); // a negative index is a large unsigned one
  uint32_t outside = 0;
  const int32_t *last = z.indices + z.indptr[z.rows];
  for (const int32_t *i = z.indices; i < last; ++i) outside |= uint32_t(*i) >= end;
  if (!outside) return;
  const auto [low, high] = std::minmax_element(z.indices, last);
  throw std::invalid_argument("indices reach " + std::to_string(*low < 0 ? *low : *high) + "; expected 0.." +
                              std::to_string(latents - 1));
}

void decode(const Csr &z, const Dictionary &W, const float *bias, float *y, int threads) {
  const DecodeKernels &k = kernels().decode;
  for_blocks(z.rows, W.width, k.block, threads,
             [&](int64_t first, int64_t last, int64_t column, int64_t columns, int) {
               for (int64_t n = first; n < last; ++n)
                 decode_block(k, entries(z, z.indptr[n], z.indptr[n + 1]), W, column, bias + column,
                              y + n * W.width + column, columns);
             });
}

void decode_masked(const Csr &z, const PerLatent<uint8_t> &keep, const Dictionary &W, const float *bias, float *y,
                   int threads) {
  const OwnedCsr filtered = kept(z, keep, threads);
  decode(filtered.view(z.rows), W, bias, y, threads);
}

void decode_sweep(const Csr &z, const PerLatent<int32_t> &rank, const std::vector<int64_t> &ks, const Dictionary &W,
                  const float *bias, float *on, float *off, int threads) {
  if (ks.empty()) return;
  const int64_t K = int64_t(ks.size()), bytes = K * z.rows * W.width * int64_t(sizeof(float));
  std::vector<int64_t> slots(ks.size()), ascending(ks.size());
  std::iota(slots.begin(), slots.end(), 0);
  std::stable_sort(slots.begin(), slots.end(), [&](int64_t a, int64_t b) { return ks[a] < ks[b]; });
  std::transform(slots.begin(), slots.end(), ascending.begin(), [&](int64_t slot) { return ks[slot]; });
  const OwnedCsr sorted = segments(z, rank, ascending, threads);
  const Csr s = sorted.view(z.rows * (K + 1));
  const DecodeKernels &k = kernels().decode;
  std::vector<std::vector<float>> scratch(size_t(std::max(threads, 1)));
  std::vector<std::vector<int64_t>> lengths(scratch.size());
  prefer_huge_pages(on, bytes);
  prefer_huge_pages(off, bytes);
  for_blocks(z.rows, W.width, k.block, threads,
             [&](int64_t first, int64_t last, int64_t column, int64_t columns, int thread) {
               std::vector<float> &parts = scratch[size_t(thread)];
               std::vector<int64_t> &length = lengths[size_t(thread)];
               parts.resize(size_t(K + 1) * size_t(columns));
               length.resize(size_t(K + 1));
               for (int64_t n = first; n < last; ++n) {
                 for (int64_t j = 0; j <= K; ++j) {
                   const int64_t *ends = s.indptr + n * (K + 1) + j;
                   length[j] = ends[1] - ends[0];
                   if (length[j])
                     decode_block(k, entries(s, ends[0], ends[1]), W, column, nullptr, &parts[j * columns], columns);
                 }
                 const int64_t at = n * W.width + column;
                 k.sweep({parts.data(), length.data(), slots.data(), K, on + at, off + at, z.rows * W.width},
                         bias + column, columns);
               }
             });
}

} // namespace patchsae
