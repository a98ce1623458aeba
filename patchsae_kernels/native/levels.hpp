// Instruction-set levels, each with its own compilation of the kernels: which of them this machine grants, and which one is
// in force.
#pragma once

#include <string>
#include <vector>

#include "kernels.hpp"

namespace patchsae {

enum class Level { scalar, avx2, avx512, avx512bf16, amx }; // ascending: a level needs all that the ones below it need

const char *name(Level level);

// The levels that were compiled in and that the CPU and the operating system grant, ascending; scalar is always there.
const std::vector<Level> &granted();

// Why the level above the last granted one is not granted: "no AMX in this CPU"; empty at the top.
const std::string &limit();

// The level in force: the highest granted one until set_level says otherwise.
Level level();

// Throws std::invalid_argument, naming the granted levels, for an unknown name and for a level that is not granted.
void set_level(const std::string &name);

// The kernels of the level in force. A driver asks once per call, so that a call runs on one level throughout.
const Kernels &kernels();

} // namespace patchsae
