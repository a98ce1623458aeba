// The work of one encode, and its two ways over a slice of the latents: all active ones, or those that lead.
#pragma once

#include "encode.hpp"

namespace patchsae {

enum class Products {
  screened, // bfloat16 products with bounds, then float32 where the bounds leave it open
  low,      // bfloat16 products are the answer
  plain,    // float32 products are the answer
  rounded,  // float32 products of operands rounded to bfloat16 are the answer
};

struct Range {
  int64_t begin, end;
};

struct Job {
  Job(const EncodeKernels &kernels, const EncodeWeights &weights, int64_t largest)
      : k(kernels), w(weights), topk(largest) {}

  const EncodeKernels &k;
  EncodeWeights w;
  int64_t topk; // 0: all active ones
  Products products = Products::plain;
  int64_t depth = 0, low_depth = 0;
  Buffer<float> bias, threshold, up, down; // per latent, padded to whole panels
  const float *u = nullptr, *v = nullptr;
  Buffer<float> centred; // [tokens, depth]
  Buffer<uint16_t> low;  // [tokens + ENCODE_GROUP, low_depth]
  Buffer<float> R, Q;    // [tokens]
};

// What a slice holds of one token for top-k.
struct Leaders {
  struct Candidate {
    int32_t latent;
    float upper;
    bool exact; // `upper` is the value itself
  };
  std::vector<Candidate> candidates; // all that may belong to the k largest, ascending in latents
  std::vector<float> lowers;         // lower bounds; at least k of them once `floor` is positive
  float floor = 0;                   // k latents are known to reach it
};

// Appends the active latents of the tokens in a slice of the panels.
void encode_active(const Job &job, Range tokens, Range panels, Part &part);

// The leaders of every token in a slice of the panels.
std::vector<Leaders> encode_leaders(const Job &job, Range tokens, Range panels);

// Appends the k largest latents of a token, `token` in its part, from the leaders of all slices, which are used up.
void select_topk(const Job &job, int64_t row, const std::vector<Leaders *> &slices, int32_t token, Part &part);

} // namespace patchsae
