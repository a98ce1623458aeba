// Adam in place, one pass over parameter, gradient and moments (Kingma & Ba 2015, bias-corrected as torch.optim.Adam).
#pragma once

#include "kernels.hpp"

namespace patchsae {

// A matrix of rows that lie `stride` floats apart, each contiguous.
template <class T> struct Rows {
  T *start;
  int64_t stride;

  T *operator[](int64_t row) const { return start + row * stride; }
};

struct AdamSettings {
  int64_t step; // counts from 1
  double lr, beta1, beta2, eps;
  bool unit_rows; // the gradient loses its component along each row of p first, and the rows end with unit norm
};

void adam(Rows<float> p, Rows<const float> grad, Rows<float> m, Rows<float> v, int64_t rows, int64_t width,
          const AdamSettings &settings, int threads);

} // namespace patchsae
