#pragma once

#include <nanobind/nanobind.h>

namespace patchsae {

void bind_step(nanobind::module_ &m);

} // namespace patchsae
