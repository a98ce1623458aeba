// Memory that starts at a cache line and is not initialised. Large blocks start at a huge page and ask for huge pages: they
// are fresh memory in every call, and the first touch of a small page costs more than what is then done with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace patchsae {

template <class T> class Buffer {
public:
  Buffer() = default;
  explicit Buffer(int64_t count) {
    if (count < 0 || uint64_t(count) > PTRDIFF_MAX / sizeof(T)) throw std::bad_alloc();
    const size_t bytes = size_t(count) * sizeof(T);
    align_ = std::align_val_t(bytes < HUGE_PAGE ? 64 : HUGE_PAGE);
    data_ = static_cast<T *>(::operator new(bytes, align_));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes >= HUGE_PAGE) madvise(data_, bytes, MADV_HUGEPAGE); // a hint: a refusal changes nothing
#endif
  }
  Buffer(Buffer &&other) noexcept : data_(std::exchange(other.data_, nullptr)), align_(other.align_) {}
  Buffer &operator=(Buffer &&other) noexcept {
    std::swap(data_, other.data_);
    std::swap(align_, other.align_);
    return *this;
  }
  ~Buffer() { ::operator delete(data_, align_); }

  T *get() { return data_; }
  const T *get() const { return data_; }
  T &operator[](int64_t i) { return data_[i]; }
  const T &operator[](int64_t i) const { return data_[i]; }

private:
  static constexpr size_t HUGE_PAGE = size_t(2) << 20;
  T *data_ = nullptr;
  std::align_val_t align_{64};
};

} // namespace patchsae
