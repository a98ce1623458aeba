#include "encode.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "encode_job.hpp"
#include "levels.hpp"
#include "parallel.hpp"

namespace patchsae {
namespace {

constexpr int64_t TOKENS = 2048;         // encoded together: centred and rounded rows are kept for so many
constexpr int64_t ROWS_AT_A_TIME = 16;   // of the work per row, handed to a thread
constexpr int64_t SLICES_PER_THREAD = 8; // of the latents, so that threads end together
constexpr int64_t TOPK_TOKENS = 256;     // in a block at least: every block of tokens reads all weights

constexpr double UNIT = 0x1p-24;              // rounding of one float32 operation, relative
constexpr double UP = 1 + 0x1p-20;            // covers the rounding of a double to a float
constexpr double OVERFLOW_FROM = 0x1p125;     // |c| |w| from which float32 sums may overflow: nothing is known there
constexpr double DENORMAL = 4 * 0x1p-126;     // lost per product at most, operands and sums flushed to zero included

// See encode.hpp: 2 D for the bfloat16 product, D / 16 for float32 lanes, the rest for the arithmetic of the bounds.
double gamma_of(int64_t depth) { return (2.0 * double(depth) + double(depth) / 16 + 64) * UNIT; }

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

void fill_bounds(Job &job, int64_t padded) {
  const EncodeWeights &w = job.w;
  const double lost = double(job.depth) * DENORMAL;
  job.bias = Buffer<float>(padded);
  job.up = Buffer<float>(padded);
  job.down = Buffer<float>(padded);
  if (w.threshold) job.threshold = Buffer<float>(padded);
  for (int64_t s = 0; s < padded; ++s) {
    const float b = s < w.latents ? w.bias[s] : 0, theta = w.threshold && s < w.latents ? w.threshold[s] : 0;
    const double slack = 8 * UNIT * (std::fabs(double(b)) + std::fabs(double(theta))) + lost;
    job.bias[s] = b;
    job.up[s] = float(double(b) - theta + slack);
    job.down[s] = float(double(b) - theta - slack);
    if (w.threshold) job.threshold[s] = theta;
  }
}

// Centres and rounds the rows of a block of tokens; false if one of them is not finite once it is centred.
bool fill_tokens(Job &job, const float *x, int64_t rows, double largest, int threads) {
  std::atomic<bool> finite{true};
  const EncodeKernels &k = job.k;
  parallel_for(rows, threads, ROWS_AT_A_TIME, [&](int64_t n, int) {
    float *c = job.centred.get() + n * job.depth;
    if (!k.centre(x + n * job.w.width, job.w.b_dec, job.w.width, c)) finite = false;
    if (job.products == Products::plain) return;
    uint16_t *low = job.low.get() + n * job.low_depth;
    std::memset(low + job.depth, 0, size_t(job.low_depth - job.depth) * sizeof *low);
    double squares[3];
    k.round(c, job.depth, low, squares);
    if (job.products == Products::rounded) // widened again, for float32 products of rounded operands
      for (int64_t d = 0; d < job.depth; ++d) {
        const uint32_t bits = uint32_t(low[d]) << 16;
        std::memcpy(c + d, &bits, sizeof bits);
      }
    const bool known = std::sqrt(squares[0]) * largest < OVERFLOW_FROM;
    job.R[n] = known ? float(std::sqrt(squares[1]) * UP) : std::numeric_limits<float>::infinity();
    job.Q[n] = float(std::sqrt(squares[2]) * UP);
  });
  return finite;
}

Job make_job(const EncodeWeights &w, int64_t tokens, int64_t k, Precision precision) {
  const EncodeKernels &kernels_here = kernels().encode;
  Job job(kernels_here, w, k);
  job.depth = round_up(w.width, 16);
  job.low_depth = round_up(w.width, 32);
  const bool packed = w.low && kernels_here.product;
  if (precision == Precision::fp32 || (precision == Precision::exact && !packed))
    job.products = Products::plain;
  else if (precision == Precision::exact)
    job.products = Products::screened;
  else
    job.products = packed ? Products::low : Products::rounded;
  const int64_t padded = round_up(w.latents, ENCODE_PANEL);
  fill_bounds(job, padded);
  job.u = w.terms;
  job.v = w.terms ? w.terms + padded : nullptr;
  job.centred = Buffer<float>(tokens * job.depth);
  if (job.products != Products::plain) {
    const int64_t readable = (tokens + ENCODE_GROUP) * job.low_depth; // a product reads a whole group
    job.low = Buffer<uint16_t>(readable);
    std::memset(job.low.get() + tokens * job.low_depth, 0, size_t(ENCODE_GROUP * job.low_depth) * sizeof(uint16_t));
    job.R = Buffer<float>(tokens);
    job.Q = Buffer<float>(tokens);
  }
  return job;
}

// Cuts `count` things into `pieces` runs, each a multiple of `grain` long but the last.
std::vector<Range> cut(int64_t count, int64_t pieces, int64_t grain) {
  const int64_t length = std::max<int64_t>(1, (count + pieces * grain - 1) / (pieces * grain)) * grain;
  std::vector<Range> out;
  for (int64_t begin = 0; begin < count; begin += length) out.push_back({begin, std::min(begin + length, count)});
  return out;
}

// Every (block of tokens, slice of panels) by itself.
void encode_block(const Job &job, int64_t rows, int64_t first_row, int threads, std::vector<Part> &parts) {
  const int64_t panels = (job.w.latents + ENCODE_PANEL - 1) / ENCODE_PANEL;
  const auto slices = cut(panels, threads * SLICES_PER_THREAD, 1);
  const int64_t wanted = threads == 1 ? 1 : 4 * threads / int64_t(slices.size()) + 1;
  const auto blocks = cut(rows, wanted, job.k.group);
  const size_t start = parts.size(), per_block = slices.size();
  for (const Range &block : blocks)
    for (size_t i = 0; i < per_block; ++i) parts.push_back({first_row + block.begin, {}, {}});
  parallel_for(int64_t(blocks.size() * per_block), threads, 1, [&](int64_t item, int) {
    encode_active(job, blocks[size_t(item) / per_block], slices[size_t(item) % per_block], parts[start + size_t(item)]);
  });
}

void encode_block_topk(const Job &job, int64_t rows, int64_t first_row, int threads, std::vector<Part> &parts) {
  const int64_t panels = (job.w.latents + ENCODE_PANEL - 1) / ENCODE_PANEL;
  const auto blocks = cut(rows, std::clamp<int64_t>(rows / TOPK_TOKENS, 1, 2 * threads), job.k.group);
  const auto slices = cut(panels, threads == 1 ? 1 : (2 * threads + int64_t(blocks.size()) - 1) / int64_t(blocks.size()), 1);
  const size_t per_block = slices.size();
  std::vector<std::vector<Leaders>> found(blocks.size() * per_block);
  parallel_for(int64_t(found.size()), threads, 1, [&](int64_t item, int) {
    found[size_t(item)] = encode_leaders(job, blocks[size_t(item) / per_block], slices[size_t(item) % per_block]);
  });
  const auto pieces = cut(rows, rows, ROWS_AT_A_TIME);
  const size_t start = parts.size();
  for (const Range &piece : pieces) parts.push_back({first_row + piece.begin, {}, {}});
  const int64_t block_length = blocks[0].end;
  parallel_for(int64_t(pieces.size()), threads, 1, [&](int64_t i, int) {
    Part &part = parts[start + size_t(i)];
    for (int64_t n = pieces[size_t(i)].begin; n < pieces[size_t(i)].end; ++n) {
      const size_t block = size_t(n / block_length);
      std::vector<Leaders *> slices_of_token;
      for (size_t s = 0; s < per_block; ++s)
        slices_of_token.push_back(&found[block * per_block + s][size_t(n - blocks[block].begin)]);
      select_topk(job, n, slices_of_token, int32_t(n - pieces[size_t(i)].begin), part);
    }
  });
}

} // namespace

std::unique_ptr<Encoded> encode(const EncodeWeights &w, const float *x, int64_t rows, int64_t k, Precision precision,
                                int threads) {
  if (rows < 0 || w.width < 0 || w.latents < 0 || w.latents > std::numeric_limits<int32_t>::max() || threads < 1)
    throw std::invalid_argument("a size is negative, or there are more than 2^31 latents");
  if (k < 0) throw std::invalid_argument("k is " + std::to_string(k) + "; expected at least 0");
  auto out = std::make_unique<Encoded>();
  out->rows = rows;
  if (rows == 0) return out;
  Job job = make_job(w, std::min(rows, TOKENS), k, precision);
  double largest = 0;
  if (w.terms) largest = *std::max_element(w.terms, w.terms + w.latents);
  for (int64_t first = 0; first < rows; first += TOKENS) {
    const int64_t count = std::min(TOKENS, rows - first);
    if (!fill_tokens(job, x + first * w.width, count, largest, threads)) {
      out->finite = false;
      return out;
    }
    if (w.latents == 0) continue;
    (k ? encode_block_topk : encode_block)(job, count, first, threads, out->parts);
  }
  for (const Part &part : out->parts)
    for (int32_t count : part.counts) out->entries += count;
  return out;
}

void Encoded::copy(float *values, int32_t *indices, int64_t *indptr, int threads) const {
  std::fill_n(indptr, rows + 1, 0);
  for (const Part &part : parts)
    for (size_t t = 0; t < part.counts.size(); ++t) indptr[part.first_row + int64_t(t) + 1] += part.counts[t];
  for (int64_t n = 0; n < rows; ++n) indptr[n + 1] += indptr[n];
  std::vector<int64_t> next(indptr, indptr + rows);
  std::vector<std::vector<int64_t>> places(parts.size()); // of the next entry of every token of a part
  for (size_t p = 0; p < parts.size(); ++p) {
    for (size_t t = 0; t < parts[p].counts.size(); ++t) {
      int64_t &place = next[size_t(parts[p].first_row) + t];
      places[p].push_back(place);
      place += parts[p].counts[t];
    }
  }
  parallel_for(int64_t(parts.size()), threads, 1, [&](int64_t p, int) {
    std::vector<int64_t> &place = places[size_t(p)];
    parts[size_t(p)].entries.each([&](const Entry &e) {
      const int64_t at = place[size_t(e.token)]++;
      indices[at] = e.latent;
      values[at] = e.value;
    });
  });
}

void pack(const float *rows, int64_t latents, int64_t depth, uint16_t *low, float *terms, int threads) {
  const EncodeKernels &k = kernels().encode;
  const int64_t padded = round_up(latents, ENCODE_PANEL), low_depth = round_up(depth, 32);
  const double gamma = gamma_of(depth);
  parallel_for(padded / 16, threads, 4, [&](int64_t group, int) {
    Buffer<uint16_t> row(low_depth);
    uint16_t *out = low + group * 16 * low_depth;
    std::memset(out, 0, size_t(16 * low_depth) * sizeof *out);
    for (int64_t i = 0; i < 16; ++i) {
      const int64_t s = group * 16 + i;
      double squares[3] = {0, 0, 0};
      if (s < latents) {
        k.round(rows + s * depth, depth, row.get(), squares);
        for (int64_t d = 0; d < depth; ++d) out[(d / 2 * 16 + i) * 2 + d % 2] = row[d];
      }
      const double norm = std::sqrt(squares[0]);
      terms[s] = float(norm * (1 + gamma) * UP);
      terms[padded + s] = float((std::sqrt(squares[1]) + gamma * norm) * UP);
    }
  });
}

bool wants_packed() { return kernels().encode.product != nullptr; }

void EntryList::append(int32_t token, int64_t first_latent, const int32_t *columns, const float *values, int64_t count) {
  constexpr int64_t SMALLEST = 256, LARGEST = 1 << 20;
  for (int64_t i = 0; i < count;) {
    if (chunks_.empty() || chunks_.back().used == chunks_.back().size) {
      const int64_t size = chunks_.empty() ? SMALLEST : std::min(2 * chunks_.back().size, LARGEST);
      chunks_.push_back({Buffer<Entry>(size), size, 0});
    }
    Chunk &chunk = chunks_.back();
    const int64_t n = std::min(count - i, chunk.size - chunk.used);
    for (int64_t j = 0; j < n; ++j, ++i)
      chunk.entries[chunk.used + j] = {token, int32_t(first_latent + columns[i]), values[i]};
    chunk.used += n;
  }
}

} // namespace patchsae
