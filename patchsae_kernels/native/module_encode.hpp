#pragma once

#include <nanobind/nanobind.h>

namespace patchsae {

void bind_encode(nanobind::module_ &m);

} // namespace patchsae
