// Loops over a given number of threads. Nothing here decides what a result is: the iterations must be independent, or write
// to places that depend on the iteration alone, so that any number of threads gives the same bits.
#pragma once

#include <omp.h>

#include <atomic>
#include <cstdint>
#include <exception>

namespace patchsae {

// body(i, thread) for i in 0..count-1, handed out in runs of `grain`; thread is 0..threads-1. The first exception stops the
// rest and is thrown here.
template <class Body> void parallel_for(int64_t count, int threads, int64_t grain, Body &&body) {
  std::exception_ptr error;
  std::atomic<bool> failed{false};
#pragma omp parallel for schedule(dynamic, grain) num_threads(threads) if (threads > 1 && count > grain)
  for (int64_t i = 0; i < count; ++i) {
    if (failed.load(std::memory_order_relaxed)) continue;
    try {
      body(i, omp_get_thread_num());
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

} // namespace patchsae
