// What the checks stand on: exact conversions, buffers that fault when a loop leaves them, a tally of comparisons.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "../../maxsim_cpu/isa.h"

namespace check {

using maxsim::DType;

inline const char* name_of(DType type) { return type == DType::f32 ? "f32" : type == DType::f16 ? "f16" : "bf16"; }

// `count` elements whose end is the end of a page, with an unreadable page behind.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t count) : size_(count * static_cast<int64_t>(sizeof(T))) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    mapped_ = (size_ / page + 3) * page;
    base_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + page, mapped_ - 2 * page, PROT_READ | PROT_WRITE)) std::abort();
    data_ = reinterpret_cast<T*>(base_ + mapped_ - page - size_);
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T* data() { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const char* bytes() const { return reinterpret_cast<const char*>(data_); }

 private:
  int64_t size_, mapped_;
  char* base_;
  T* data_;
};

struct HalfFormat {
  int mantissa;  // bits
  int bias;
};

inline HalfFormat format_of(DType type) { return type == DType::f16 ? HalfFormat{10, 15} : HalfFormat{7, 127}; }

inline double decode(uint16_t bits, DType type) {
  const HalfFormat f = format_of(type);
  const int exponent = (bits & 0x7fff) >> f.mantissa, fraction = bits & ((1 << f.mantissa) - 1);
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == 2 * f.bias + 1) return fraction ? NAN : sign * INFINITY;
  const int significand = exponent ? fraction + (1 << f.mantissa) : fraction;
  return sign * std::ldexp(significand, (exponent ? exponent : 1) - f.bias - f.mantissa);
}

// Round to nearest even. The encodings of one sign are in order, so a carry out of the fraction lands where it should.
inline uint16_t encode(double value, DType type) {
  const HalfFormat f = format_of(type);
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const int infinity = (2 * f.bias + 1) << f.mantissa;
  value = std::fabs(value);
  if (value == 0) return sign;
  if (std::isinf(value)) return static_cast<uint16_t>(sign | infinity);
  const int exponent = std::max(std::ilogb(value), 1 - f.bias);
  const double steps = std::nearbyint(std::ldexp(value, f.mantissa - exponent));
  const double bits = std::ldexp(exponent + f.bias - 1, f.mantissa) + steps;
  return static_cast<uint16_t>(sign | static_cast<int>(std::min<double>(bits, infinity)));
}

inline int64_t size_of(DType type) { return maxsim::element_size(type); }

inline void put(void* row, int64_t k, float value, DType type) {
  if (type == DType::f32)
    static_cast<float*>(row)[k] = value;
  else if (std::isnan(value))
    static_cast<uint16_t*>(row)[k] = type == DType::f16 ? 0x7e00 : 0x7fc0;
  else
    static_cast<uint16_t*>(row)[k] = encode(value, type);
}

inline double get(const void* row, int64_t k, DType type) {
  if (type != DType::f32) return decode(static_cast<const uint16_t*>(row)[k], type);
  return static_cast<const float*>(row)[k];
}

class Random {
 public:
  int64_t below(int64_t n) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(n)); }
  uint32_t bits() { return static_cast<uint32_t>(engine_()); }
  float normal() { return normal_(engine_); }
  // A multiple of 1/8 in [-2, 2]: fits every dtype, and sums of products are exact in any order.
  float eighth() { return static_cast<float>(below(33) - 16) / 8; }

 private:
  std::mt19937_64 engine_{20240229};
  std::normal_distribution<float> normal_;
};

class Report {
 public:
  explicit Report(const char* path) : path_(path) {}

  // Equal, or both NaN.
  void same(double got, double want, const char* what, int64_t a = 0, int64_t b = 0, int64_t c = 0) {
    near(got, want, 0, what, a, b, c);
  }
  void near(double got, double want, double tolerance, const char* what, int64_t a = 0, int64_t b = 0, int64_t c = 0) {
    ++checks_;
    if (got == want || (std::isnan(got) && std::isnan(want)) || std::fabs(got - want) <= tolerance) return;
    if (++failures_ <= 10)
      std::fprintf(stderr, "%s: %s (%lld, %lld, %lld) is %.9g, not %.9g\n", path_, what, static_cast<long long>(a),
                   static_cast<long long>(b), static_cast<long long>(c), got, want);
  }
  // Prints the path's line; true when every comparison held.
  bool finish() const {
    std::printf("%s: %lld of %lld comparisons differ\n", path_, static_cast<long long>(failures_),
                static_cast<long long>(checks_));
    return checks_ && !failures_;
  }

 private:
  const char* path_;
  int64_t checks_ = 0, failures_ = 0;
};

}  // namespace check
