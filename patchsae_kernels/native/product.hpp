// c (+)= a b in float32, with the same bits for any number of threads: the vendor's products do not promise that.
#pragma once

#include "kernels.hpp"

namespace patchsae {

void product(const Product &t, int threads);

} // namespace patchsae
