#include "encode_job.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

namespace patchsae {
namespace {

constexpr int64_t SPARE = 16; // what kernels may write beyond the last column that counts

// When so many of a group's latents are candidates, float32 products of all of them are cheaper than screening and scoring
// the candidates again; below half of it screening takes over again. Both give the same bits.
constexpr double DENSE_FROM = 1.0 / 3;

// Scores pairs of a token and a latent in float32, in batches.
class Scorer {
public:
  explicit Scorer(const Job &job) : job_(job) {}

  // out[i] = pre-activation of latent at(i) for token row(i).
  template <class Row, class Latent> void score(int64_t count, Row &&row, Latent &&latent, float *out) const {
    const float *x[ENCODE_PAIRS], *w[ENCODE_PAIRS];
    float dots[ENCODE_PAIRS];
    for (int64_t i = 0; i < count; i += ENCODE_PAIRS) {
      for (int64_t j = 0; j < ENCODE_PAIRS; ++j) {
        const int64_t p = std::min(i + j, count - 1); // a short batch repeats the last pair
        x[j] = job_.centred.get() + row(p) * job_.depth;
        w[j] = job_.w.rows + latent(p) * job_.depth;
      }
      job_.k.pairs(x, w, job_.depth, dots);
      for (int64_t j = 0; j < ENCODE_PAIRS && i + j < count; ++j) {
        const float pre = dots[j] + job_.bias[latent(i + j)];
        out[i + j] = std::isfinite(pre) ? pre : std::numeric_limits<float>::infinity(); // as in encode_active
      }
    }
  }

private:
  const Job &job_;
};

// Scores the candidates of a token that are known by their bounds alone.
void settle(const Scorer &scorer, int64_t token, std::vector<Leaders::Candidate> &candidates) {
  std::vector<Leaders::Candidate *> open;
  for (Leaders::Candidate &one : candidates)
    if (!one.exact) open.push_back(&one);
  std::vector<float> values(open.size());
  scorer.score(
      int64_t(open.size()), [&](int64_t) { return token; }, [&](int64_t i) { return open[size_t(i)]->latent; }, values.data());
  for (size_t i = 0; i < open.size(); ++i) *open[i] = {open[i]->latent, values[i], true};
}

// Calls visitor.screened or visitor.exact for every token and panel, with the products of the token with the panel's latents;
// both return how many latents they took.
template <class Visitor> void walk(const Job &job, Range tokens, Range panels, Visitor &visitor) {
  Buffer<float> products(ENCODE_GROUP * ENCODE_PANEL);
  bool dense = false;
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    const int64_t first = panel * ENCODE_PANEL, latents = std::min(ENCODE_PANEL, job.w.latents - first);
    for (int64_t group = tokens.begin; group < tokens.end; group += job.k.group) {
      const int64_t count = std::min(job.k.group, tokens.end - group);
      const bool screen = job.products == Products::screened && !dense;
      if (screen || job.products == Products::low)
        job.k.product(job.low.get() + group * job.low_depth, count, job.w.low + first * job.low_depth, job.low_depth,
                      products.get());
      else
        job.k.dots(job.centred.get() + group * job.depth, count, job.w.rows + first * job.depth, latents, job.depth,
                   products.get());
      int64_t taken = 0;
      for (int64_t t = 0; t < count; ++t) {
        const float *row = products.get() + t * ENCODE_PANEL;
        taken += screen ? visitor.screened(group + t, first, latents, row) : visitor.exact(group + t, first, latents, row);
      }
      const double share = double(taken) / double(count * latents);
      dense = job.products == Products::screened && share > (dense ? DENSE_FROM / 2 : DENSE_FROM);
    }
    visitor.end_of_panel();
  }
}

class ActiveLatents {
public:
  ActiveLatents(const Job &job, Range tokens, Part &part) : job_(job), scorer_(job), first_token_(tokens.begin), part_(part) {
    part.counts.assign(size_t(tokens.end - tokens.begin), 0);
  }

  int64_t exact(int64_t token, int64_t first, int64_t latents, const float *products) {
    const float *threshold = job_.threshold.get() ? job_.threshold.get() + first : nullptr;
    const int64_t count =
        job_.k.active(products, job_.bias.get() + first, threshold, 0.0f, latents, columns_, values_);
    append(token, first, columns_, values_, count);
    return count;
  }

  int64_t screened(int64_t token, int64_t first, int64_t latents, const float *products) {
    const int64_t count = job_.k.screen(products, job_.up.get() + first, job_.u + first, job_.v + first, job_.R[token],
                                        job_.Q[token], latents, columns_);
    for (int64_t i = 0; i < count; ++i) pending_.push_back({token, int32_t(first + columns_[i])});
    if (int64_t(pending_.size()) >= PENDING) end_of_panel();
    return count;
  }

  void end_of_panel() {
    scores_.resize(pending_.size());
    scorer_.score(
        int64_t(pending_.size()), [&](int64_t i) { return pending_[size_t(i)].token; },
        [&](int64_t i) { return pending_[size_t(i)].latent; }, scores_.data());
    for (size_t i = 0; i < pending_.size(); ++i) {
      const Pending &p = pending_[i];
      const float threshold = job_.threshold.get() ? job_.threshold[p.latent] : 0.0f;
      if (scores_[i] > threshold) append(p.token, 0, &p.latent, &scores_[i], 1);
    }
    pending_.clear();
  }

private:
  static constexpr int64_t PENDING = 1024;
  struct Pending {
    int64_t token;
    int32_t latent;
  };

  void append(int64_t token, int64_t first, const int32_t *columns, const float *values, int64_t count) {
    part_.entries.append(int32_t(token - first_token_), first, columns, values, count);
    part_.counts[size_t(token - first_token_)] += int32_t(count);
  }

  const Job &job_;
  Scorer scorer_;
  int64_t first_token_;
  Part &part_;
  std::vector<Pending> pending_;
  std::vector<float> scores_;
  int32_t columns_[ENCODE_PANEL + SPARE];
  float values_[ENCODE_PANEL + SPARE];
};

// The k-th largest of `values`, which keeps only the k largest; 0 if there are fewer.
float keep_largest(std::vector<float> &values, size_t k) {
  if (values.size() < k) return 0;
  std::nth_element(values.begin(), values.begin() + long(k - 1), values.end(), std::greater<>());
  values.resize(k);
  return values[k - 1];
}

class LeadingLatents {
public:
  LeadingLatents(const Job &job, Range tokens)
      : job_(job), scorer_(job), first_token_(tokens.begin), leaders_(size_t(tokens.end - tokens.begin)),
        k_(size_t(job.topk)), most_(4 * k_ + 256) {}

  int64_t exact(int64_t token, int64_t first, int64_t latents, const float *products) {
    Leaders &l = leaders_[size_t(token - first_token_)];
    const float floor = l.floor > 0 ? std::nextafter(l.floor, 0.0f) : 0.0f; // ties with the k-th stay
    const int64_t count = job_.k.active(products, job_.bias.get() + first, nullptr, floor, latents, columns_, uppers_);
    add(l, token, first, count, uppers_, uppers_, true);
    return count;
  }

  int64_t screened(int64_t token, int64_t first, int64_t latents, const float *products) {
    Leaders &l = leaders_[size_t(token - first_token_)];
    const int64_t count = job_.k.bounds(products, job_.up.get() + first, job_.down.get() + first, job_.u + first,
                                        job_.v + first, job_.R[token], job_.Q[token], l.floor, latents, columns_, uppers_,
                                        lowers_);
    add(l, token, first, count, uppers_, lowers_, false);
    return count;
  }

  void end_of_panel() {}

  std::vector<Leaders> take() { return std::move(leaders_); }

private:
  void add(Leaders &l, int64_t token, int64_t first, int64_t count, const float *uppers, const float *lowers, bool exact) {
    for (int64_t i = 0; i < count; ++i) {
      if (uppers[i] < l.floor) continue;
      l.candidates.push_back({int32_t(first + columns_[i]), uppers[i], exact});
      if (lowers[i] > l.floor) l.lowers.push_back(lowers[i]);
      if (l.lowers.size() >= 2 * k_ + 64) l.floor = std::max(l.floor, keep_largest(l.lowers, k_));
    }
    if (l.candidates.size() >= most_) prune(l, token);
  }

  // Drops what is below the floor; where too much stays, because bounds are wide or values equal, exact values decide.
  void prune(Leaders &l, int64_t token) {
    auto &c = l.candidates;
    l.floor = std::max(l.floor, keep_largest(l.lowers, k_));
    std::erase_if(c, [&](const Leaders::Candidate &one) { return one.upper < l.floor; });
    if (c.size() < most_ / 2) return;
    settle(scorer_, token, c);
    l.lowers.resize(c.size());
    std::transform(c.begin(), c.end(), l.lowers.begin(), [](const Leaders::Candidate &one) { return one.upper; });
    const float kth = keep_largest(l.lowers, k_);
    int64_t ties = int64_t(k_) - std::count_if(c.begin(), c.end(), [&](const auto &one) { return one.upper > kth; });
    std::erase_if(c, [&](const auto &one) { return !(one.upper > kth || (one.upper == kth && ties-- > 0)); });
    l.floor = std::max(l.floor, kth);
  }

  const Job &job_;
  Scorer scorer_;
  int64_t first_token_;
  std::vector<Leaders> leaders_;
  size_t k_, most_; // candidates of a token before they are pruned
  int32_t columns_[ENCODE_PANEL + SPARE];
  float uppers_[ENCODE_PANEL + SPARE], lowers_[ENCODE_PANEL + SPARE];
};

} // namespace

void encode_active(const Job &job, Range tokens, Range panels, Part &part) {
  ActiveLatents visitor(job, tokens, part);
  walk(job, tokens, panels, visitor);
}

std::vector<Leaders> encode_leaders(const Job &job, Range tokens, Range panels) {
  LeadingLatents visitor(job, tokens);
  walk(job, tokens, panels, visitor);
  return visitor.take();
}

void select_topk(const Job &job, int64_t row, const std::vector<Leaders *> &slices, int32_t token, Part &part) {
  const size_t k = size_t(job.topk);
  std::vector<float> lowers;
  for (const Leaders *l : slices) lowers.insert(lowers.end(), l->lowers.begin(), l->lowers.end());
  const float floor = std::max(0.0f, keep_largest(lowers, k));
  std::vector<Leaders::Candidate> best;
  for (const Leaders *l : slices)
    for (const Leaders::Candidate &one : l->candidates)
      if (!(one.upper < floor)) best.push_back(one);
  for (Leaders *l : slices) *l = {};
  settle(Scorer(job), row, best);
  std::erase_if(best, [](const Leaders::Candidate &one) { return !(one.upper > 0); });
  const auto by_latent = [](const auto &a, const auto &b) { return a.latent < b.latent; };
  if (best.size() > k) {
    std::nth_element(best.begin(), best.begin() + long(k), best.end(), [](const auto &a, const auto &b) {
      return a.upper > b.upper || (a.upper == b.upper && a.latent < b.latent);
    });
    best.resize(k);
    std::sort(best.begin(), best.end(), by_latent);
  }
  for (const Leaders::Candidate &one : best) part.entries.append(token, 0, &one.latent, &one.upper, 1);
  part.counts.resize(size_t(token) + 1);
  part.counts[size_t(token)] = int32_t(best.size());
}

} // namespace patchsae
