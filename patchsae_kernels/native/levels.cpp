#include "levels.hpp"

#include <atomic>
#include <stdexcept>
#include <utility>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace patchsae {

// One table per translation unit level_*.cpp; PATCHSAE_HAS_* come from CMake, which knows what the compiler can do.
namespace scalar {
extern const Kernels table;
}
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
namespace avx512bf16 {
extern const Kernels table;
}
namespace amx {
extern const Kernels table;
}

namespace {

constexpr const char *NAMES[] = {"scalar", "avx2", "avx512", "avx512bf16", "amx"};

#if defined(PATCHSAE_HAS_AMX) && !defined(PATCHSAE_EMULATE_AMX)
// Tile state is granted to a process that asks for it, once; threads inherit the permission.
const char *without_amx() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & 1u << 24) || !(d & 1u << 22)) return "no AMX in this CPU";
#if defined(__linux__)
  constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18;
  if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0) return nullptr;
#endif
  return "the operating system refuses AMX tile state";
}
#endif

// Why a level cannot run here; nullptr where it can, given that the level below it can.
const char *obstacle([[maybe_unused]] Level level) {
#if !defined(__x86_64__)
  return "the other levels are for x86-64";
#else
  [[maybe_unused]] constexpr const char *compiler = "not compiled in: the compiler was too old for it";
  switch (level) {
  case Level::scalar: break;
  case Level::avx2:
#if defined(PATCHSAE_HAS_AVX2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
        __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt"))
      break;
    return "no AVX2 with FMA in this CPU";
#else
    return compiler;
#endif
  case Level::avx512:
#if defined(PATCHSAE_HAS_AVX512)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
      break;
    return "no AVX-512 (F, BW, DQ, VL) in this CPU";
#else
    return compiler;
#endif
  case Level::avx512bf16:
#if defined(PATCHSAE_HAS_AVX512BF16)
    if (__builtin_cpu_supports("avx512bf16")) break;
    return "no AVX-512 BF16 in this CPU";
#else
    return compiler;
#endif
  case Level::amx:
#if defined(PATCHSAE_EMULATE_AMX)
    break;
#elif defined(PATCHSAE_HAS_AMX)
    return without_amx();
#else
    return compiler;
#endif
  }
  return nullptr;
#endif
}

const Kernels &table_of(Level level) {
  switch (level) {
#if defined(PATCHSAE_HAS_AVX2)
  case Level::avx2: return avx2::table;
#endif
#if defined(PATCHSAE_HAS_AVX512)
  case Level::avx512: return avx512::table;
#endif
#if defined(PATCHSAE_HAS_AVX512BF16)
  case Level::avx512bf16: return avx512bf16::table;
#endif
#if defined(PATCHSAE_HAS_AMX)
  case Level::amx: return amx::table;
#endif
  default: return scalar::table;
  }
}

struct Detected {
  std::vector<Level> levels{Level::scalar};
  std::string limit;
};

const Detected &detected() {
  static const Detected once = [] {
    Detected found;
    for (Level next : {Level::avx2, Level::avx512, Level::avx512bf16, Level::amx}) {
      if (const char *why = obstacle(next)) {
        found.limit = why;
        break;
      }
      found.levels.push_back(next);
    }
    return found;
  }();
  return once;
}

std::atomic<Level> &in_force() {
  static std::atomic<Level> chosen{granted().back()};
  return chosen;
}

} // namespace

const char *name(Level level) { return NAMES[int(level)]; }
const std::vector<Level> &granted() { return detected().levels; }
const std::string &limit() { return detected().limit; }
Level level() { return in_force(); }
const Kernels &kernels() { return table_of(level()); }

void set_level(const std::string &wanted) {
  std::string names;
  for (Level l : granted()) {
    if (wanted == name(l)) {
      in_force() = l;
      return;
    }
    names += (names.empty() ? "" : ", ") + std::string(name(l));
  }
  throw std::invalid_argument("CPU level is '" + wanted + "'; expected one that this machine grants: " + names +
                              (limit().empty() ? "" : " (" + limit() + ")"));
}

} // namespace patchsae
