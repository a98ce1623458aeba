// Encode: act((x - b_dec) W + b) as CSR, never dense beyond a group of tokens times a panel of latents.
//
// The exact encode screens with bfloat16 products. With c = x - b_dec, c' and w' rounded to bfloat16, Cauchy-Schwarz gives
// |c.w - c'.w'| <= |c - c'| |w| + |c'| |w - w'|. Sums of D products in float32 are each off by at most D 2^-24 |c| |w| (twice
// that is allowed, since the instructions are free to round more often); with the float32 dot product that decides and the
// arithmetic of the screen itself, GAMMA covers all of it. So for the product a = c'.w' as computed
//
//     |pre - (a + b)| <= R u_s + Q v_s + slack,   R = |c - c'|, Q = |c'|, u_s = |w| (1 + GAMMA), v_s = |w - w'| + GAMMA |w|
//
// and slack, for the rounding of b and for denormal numbers, which the instructions take for zero. Latents whose upper bound
// passes are scored again in float32; these values do not depend on how tokens and latents are cut into blocks.
#pragma once

#include <memory>
#include <vector>

#include "buffer.hpp"
#include "kernels.hpp"

namespace patchsae {

enum class Precision { exact, bf16, fp32 };

struct EncodeWeights {
  const float *rows;      // [latents, depth], depth = width rounded up to 16; for bf16 without bfloat16 products rounded
  const uint16_t *low;    // packed; null where the level has no bfloat16 products
  const float *terms;     // u, then v: [2, latents rounded up to ENCODE_PANEL]; with `low`
  const float *bias;      // [latents]
  const float *threshold; // [latents], >= 0; null for ReLU and top-k
  const float *b_dec;     // [width]
  int64_t latents, width;
};

struct Entry {
  int32_t token, latent; // token: in the block of its part
  float value;
};

// A list that grows without moving what it holds.
class EntryList {
public:
  EntryList() = default;
  EntryList(EntryList &&) = default;
  EntryList &operator=(EntryList &&) = default;

  void append(int32_t token, int64_t first_latent, const int32_t *columns, const float *values, int64_t count);
  template <class Visit> void each(Visit &&visit) const {
    for (const Chunk &chunk : chunks_)
      for (int64_t i = 0; i < chunk.used; ++i) visit(chunk.entries[i]);
  }

private:
  struct Chunk {
    Buffer<Entry> entries;
    int64_t size, used;
  };
  std::vector<Chunk> chunks_;
};

// The entries of some tokens in some latents; for every token in ascending order of latents.
struct Part {
  int64_t first_row;
  std::vector<int32_t> counts; // per token
  EntryList entries;
};

// What an encode found, before it is known how large the result is.
struct Encoded {
  Encoded() = default;
  Encoded(Encoded &&) = default;

  int64_t rows = 0, entries = 0;
  bool finite = true; // false: x - b_dec holds a NaN or an infinity, and nothing was encoded
  std::vector<Part> parts; // for every token in ascending order of latents

  // Writes CSR: values and indices [entries], indptr [rows + 1].
  void copy(float *values, int32_t *indices, int64_t *indptr, int threads) const;
};

// x is [rows, width] float32. k = 0: ReLU or JumpReLU; else the k largest positive latents, ties to the lower one, which takes
// up to 32 bytes of each token for every latent that may be among them. A sum that overflows gives an infinite value.
// Throws std::invalid_argument for sizes out of range, std::bad_alloc.
std::unique_ptr<Encoded> encode(const EncodeWeights &w, const float *x, int64_t rows, int64_t k, Precision precision,
                                int threads);

// Packs rows [latents, depth] (depth a multiple of 16) into low [padded latents, padded depth] and terms [2, padded latents]:
// latents are padded to ENCODE_PANEL, depth to 32.
void pack(const float *rows, int64_t latents, int64_t depth, uint16_t *low, float *terms, int threads);

// Whether the level in force has bfloat16 products, that is, wants packed weights.
bool wants_packed();

} // namespace patchsae
